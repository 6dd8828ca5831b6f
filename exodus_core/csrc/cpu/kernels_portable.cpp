// Row kernels for any processor that the compiler targets by default.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#define EXODUS_VECTOR_BYTES 16
#include "simd.h"
#include "kernels.h"

#define EXODUS_INSTRUCTION_SET_NAME portable
#define EXODUS_INSTRUCTION_SET_LABEL "portable"
#include "kernels_impl.h"
