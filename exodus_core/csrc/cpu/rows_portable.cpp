// Row kernels for any processor that the compiler targets by default.
#include "rows.h"

#define EXODUS_INSTRUCTION_SET_NAME portable
#define EXODUS_INSTRUCTION_SET_LABEL "portable"
#include "rows_impl.h"
