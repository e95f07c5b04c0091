#define ISA avx512_bf16
#define VECTOR 16
#define PANELS 4
#define TILE 6
#define BF16 1
#include "gradient.h"
#include "kernels.h"
#include "orthogonal.h"
