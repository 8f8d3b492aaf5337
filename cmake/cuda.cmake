# Whether CUDA kernels are built, and for which GPUs. Sets
#   cuda_problem   why they are not, in one line, or empty
#   cuda_compiler  its name and version, or "none"
# and enables the language. Asked for are they by CGM_FAST_CUDA=ON, CUDAARCHS or
# CMAKE_CUDA_ARCHITECTURES; what is in their way is then an error. Else they are built if they can be,
# for the GPUs that are visible here.

set(cuda_problem "")
set(cuda_compiler "none")

string(TOUPPER "${CGM_FAST_CUDA}" wanted)
if(NOT wanted MATCHES "^(AUTO|ON|OFF|TRUE|FALSE|YES|NO|1|0)$")
  message(FATAL_ERROR "CGM_FAST_CUDA must be AUTO, ON or OFF, got ${CGM_FAST_CUDA}")
endif()
# CMake keeps the architectures in its cache: those that we chose before are nobody's wish.
if(DEFINED CMAKE_CUDA_ARCHITECTURES AND DEFINED CGM_FAST_CUDA_CHOSEN
   AND "${CMAKE_CUDA_ARCHITECTURES}" STREQUAL "${CGM_FAST_CUDA_CHOSEN}")
  unset(CMAKE_CUDA_ARCHITECTURES CACHE)
endif()
set(asked FALSE)
if(NOT wanted STREQUAL "AUTO" OR DEFINED ENV{CUDAARCHS} OR DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(asked TRUE)
endif()

# Of the GPUs that are visible here, by the driver's own word.
function(visible_architectures out)
  set(found "")
  find_program(NVIDIA_SMI nvidia-smi)
  mark_as_advanced(NVIDIA_SMI)
  if(NVIDIA_SMI)
    execute_process(COMMAND "${NVIDIA_SMI}" --query-gpu=compute_cap --format=csv,noheader
      OUTPUT_VARIABLE lines ERROR_QUIET RESULT_VARIABLE failed TIMEOUT 60)
    string(REGEX MATCHALL "[0-9]+[.][0-9]+" capabilities "${lines}")
    if(NOT failed)
      foreach(capability IN LISTS capabilities)
        if(capability VERSION_GREATER_EQUAL 8.0)
          string(REPLACE "." "" number "${capability}")
          list(APPEND found "${number}-real")
        endif()
      endforeach()
    endif()
  endif()
  list(REMOVE_DUPLICATES found)
  set(${out} "${found}" PARENT_SCOPE)
endfunction()

# Why this nvcc, with the C++ compiler it takes, cannot compile for these: tried, for tables of
# versions go out of date.
function(why_not_for architectures out)
  set(options "")
  foreach(architecture IN LISTS architectures)
    if(architecture MATCHES "^([0-9]+[af]?)(-real|-virtual)?$")
      set(number "${CMAKE_MATCH_1}")
      set(code "sm_${number}")
      if(CMAKE_MATCH_2 STREQUAL "-virtual")
        set(code "compute_${number}")
      endif()
      list(APPEND options "-gencode=arch=compute_${number},code=${code}")
    endif()
  endforeach()
  if(CMAKE_CUDA_HOST_COMPILER)
    list(APPEND options "-ccbin=${CMAKE_CUDA_HOST_COMPILER}")
  endif()
  set(source "${CMAKE_CURRENT_BINARY_DIR}/try.cu")
  file(WRITE "${source}" "#include <cuda_fp16.h>\n__global__ void nothing() {}\n")
  execute_process(
    COMMAND "${CMAKE_CUDA_COMPILER}" -std=c++17 ${options} -c "${source}" -o "${source}.o"
    RESULT_VARIABLE failed OUTPUT_VARIABLE text ERROR_VARIABLE text)
  set(${out} "" PARENT_SCOPE)
  if(failed)
    # Its first complaint, fit to be quoted in C++.
    string(REGEX MATCH "[^\n]*([Ee]rror|fatal|unsupported|Unsupported)[^\n]*" line "${text}")
    string(REGEX REPLACE "[\"\\;]" "'" line "${line}")
    string(REPLACE ";" ", " architectures "${architectures}")
    set(${out} "${CMAKE_CUDA_COMPILER} cannot compile for ${architectures}: ${line}" PARENT_SCOPE)
  endif()
endfunction()

set(architectures "${CMAKE_CUDA_ARCHITECTURES}")
if(NOT architectures AND DEFINED ENV{CUDAARCHS})
  set(architectures "$ENV{CUDAARCHS}")
endif()
if(NOT wanted STREQUAL "AUTO" AND NOT wanted)
  set(cuda_problem "left out by CGM_FAST_CUDA=OFF")
  set(asked FALSE)
elseif(NOT asked)
  visible_architectures(architectures)
  if(NOT architectures)
    set(cuda_problem "no GPU of compute capability 8.0 or more was visible to nvidia-smi")
  endif()
elseif(NOT architectures)
  set(architectures "80-real;90")
endif()

if(NOT cuda_problem)
  # Whether there is one; what it can compile for is asked below.
  set(given "$ENV{CUDAARCHS}")
  unset(ENV{CUDAARCHS})
  if(NOT CMAKE_CUDA_COMPILER)
    unset(CMAKE_CUDA_COMPILER CACHE) # as in CMakeLists.txt
  endif()
  check_language(CUDA)
  if(given)
    set(ENV{CUDAARCHS} "${given}")
  endif()
  if(NOT CMAKE_CUDA_COMPILER)
    set(cuda_problem "no nvcc that works was on the PATH or in CUDACXX")
  else()
    why_not_for("${architectures}" cuda_problem)
  endif()
endif()

if(NOT cuda_problem)
  # A target copies the architectures when it is created.
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES "${architectures}")
    set(CGM_FAST_CUDA_CHOSEN "${architectures}" CACHE INTERNAL "not by whoever builds")
  endif()
  enable_language(CUDA)
  set(cuda_compiler "nvcc ${CMAKE_CUDA_COMPILER_VERSION}")
elseif(asked)
  message(FATAL_ERROR "cgm_fast: CUDA kernels were asked for, but ${cuda_problem}")
else()
  message(NOTICE "cgm_fast: no CUDA kernels: ${cuda_problem}; CGM_FAST_CUDA=ON asks for them")
endif()
