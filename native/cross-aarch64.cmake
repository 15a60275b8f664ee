# For building the kernels' test on another machine than an ARM one: cmake -DCMAKE_TOOLCHAIN_FILE=cross-aarch64.cmake
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_EXE_LINKER_FLAGS -static)
