#define ISA portable
#define VECTOR 4
#define PANELS 2
#define TILE 6
#define BF16 0
#include "gradient.h"
#include "kernels.h"
#include "orthogonal.h"
#include "graph.h"
#include "scan.h"
#include "tables.h"
