"""A chat template is somebody else's program: it may write text, and nothing else, for a while."""

from __future__ import annotations

import time

import pytest

from knee.errors import UserError
from knee.weights.chat import render

MESSAGES = {"messages": [{"role": "user", "content": "Hé <b>"}], "bos_token": "<s>"}


def test_templates_see_messages_special_tokens_and_helpers() -> None:
    template = """{{ bos_token }}
{% for message in messages %}
    {% if loop.index > 5 %}{% break %}{% endif %}
{{ message.role }}: {{ message['content'] }}
{% endfor %}
{{ messages[0] | tojson }} {{ strftime_now('%Y') | length }}"""
    assert render(template, MESSAGES) == '<s>\nuser: Hé <b>\n{"role": "user", "content": "Hé <b>"} 4'


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% if", "TemplateSyntaxError"),
        ("{{ missing.attribute.of }}", "UndefinedError"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{% include '/etc/passwd' %}", "failed"),
        ("{% for i in range(10**9) %}{% endfor %}", "OverflowError"),
        ("{% for i in range(9999) %}{{ 'x' * 999 }}{% endfor %}", "writes more than"),
    ],
)
def test_faulty_and_forbidden_templates_are_messages(template: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        render(template, MESSAGES)


@pytest.mark.parametrize(
    "template",
    [
        "{{ 9 ** (9 ** 9) }}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'a' * 10 ** 12 }}",
    ],
)
def test_a_template_that_runs_or_grows_for_ever_is_stopped(template: str) -> None:
    started = time.perf_counter()
    with pytest.raises(UserError, match="chat template"):
        render(template, MESSAGES, seconds=1.0)
    assert time.perf_counter() - started < 30
