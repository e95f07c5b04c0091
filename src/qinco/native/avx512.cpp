#define ISA avx512
#define VECTOR 16
#define PANELS 4
#define TILE 6
#define BF16 0
#include "gradient.h"
#include "kernels.h"
#include "orthogonal.h"
#include "graph.h"
#include "scan.h"
#include "tables.h"
