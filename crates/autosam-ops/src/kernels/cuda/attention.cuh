// Shared by both GPU implementations of attention: parameters, copies into shared memory, products of 16 x 8 x 16,
// distances.

#pragma once

#include "common.cuh"

// Parameters of a launch. A block processes some queries of one head.
struct Attention {
    // Strides in elements between images, heads and tokens.
    long long q[3], k[3], v[3];
    unsigned heads, tokens, keys;
    float scale;
    // For relative positions: the sides of a window, the sides of the grid that is partitioned into windows, and the
    // number of windows per row of the grid.
    unsigned h, w, down, across, columns;
};

// Keys that a block processes at a time. It never holds more scores than for these.
constexpr int TILE = 64;
constexpr float LOG2E = 1.44269504f;

__device__ __forceinline__ void load_async(unsigned at, const void *global, bool inside) {
    int bytes = inside ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(at), "l"(global), "r"(bytes));
}

__device__ __forceinline__ void load_async(void *shared, const void *global, bool inside) {
    load_async((unsigned)__cvta_generic_to_shared(shared), global, inside);
}

__device__ __forceinline__ void matrices(unsigned (&r)[4], const void *shared) {
    unsigned at = (unsigned)__cvta_generic_to_shared(shared);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at));
}

__device__ __forceinline__ void matrices_turned(unsigned (&r)[4], const void *shared) {
    unsigned at = (unsigned)__cvta_generic_to_shared(shared);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at));
}

template <typename T> __device__ __forceinline__ void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1);
template <> __device__ __forceinline__ void multiply<bf16>(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <> __device__ __forceinline__ void multiply<f16>(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <typename T> __device__ __forceinline__ unsigned pack(float a, float b);
template <> __device__ __forceinline__ unsigned pack<bf16>(float a, float b) {
    __nv_bfloat162 v = __floats2bfloat162_rn(a, b);
    return *reinterpret_cast<unsigned *>(&v);
}
template <> __device__ __forceinline__ unsigned pack<f16>(float a, float b) {
    __half2 v = __floats2half2_rn(a, b);
    return *reinterpret_cast<unsigned *>(&v);
}

__device__ __forceinline__ float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
    return y;
}

// Copies rows `first` to `first + count` of a matrix of `rows` into shared memory, with zeros beyond.
template <typename T, int D>
__device__ __forceinline__ void load_rows(T (*to)[D + 8], const T *from, long long step, unsigned first, unsigned rows, int count, int threads) {
    constexpr int PARTS = D / 8;
    for (int i = threadIdx.x; i < count * PARTS; i += threads) {
        const int row = i / PARTS, part = i % PARTS;
        const bool inside = first + row < rows;
        load_async(&to[row][part * 8], from + (inside ? (first + row) * step : 0) + part * 8, inside);
    }
}

// c [16 M, 16 P] += a's rows times the tile's, transposed; 16 `blocks` of the tile's rows.
template <typename T, int D, int M, int P>
__device__ __forceinline__ void scores(float (&c)[M][2 * P][4], const unsigned (&a)[M][D / 16][4], T (*tile)[D + 8], int lane, int blocks) {
#pragma unroll
    for (int step = 0; step < D / 16; step++) {
#pragma unroll
        for (int pair = 0; pair < P; pair++) {
            if (pair >= blocks) continue;
            unsigned b[4];
            matrices(b, &tile[pair * 16 + (lane & 7) + (lane >> 4) * 8][step * 16 + (lane >> 3 & 1) * 8]);
#pragma unroll
            for (int m = 0; m < M; m++) {
                multiply<T>(c[m][2 * pair], a[m][step], b[0], b[1]);
                multiply<T>(c[m][2 * pair + 1], a[m][step], b[2], b[3]);
            }
        }
    }
}

// A window of a grid of tokens, or the grid itself.
struct Window {
    unsigned top, left;
    // Multiplier for dividing numbers below 65536 by the window's width; a width of one is a special case.
    unsigned inverse;

    // The window with number `image`, which is replaced by the number of its image.
    static __device__ __forceinline__ Window of(const Attention &p, unsigned &image) {
        const unsigned windows = p.columns * ((p.down + p.h - 1) / p.h), number = image % windows;
        image /= windows;
        return {number / p.columns * p.h, number % p.columns * p.w, inverse_of(p.w)};
    }

    static __device__ __forceinline__ unsigned inverse_of(unsigned width) { return width > 1 ? 0xffffffffu / width + 1 : 0; }
    __device__ __forceinline__ unsigned row_of(unsigned query) const { return inverse ? __umulhi(query, inverse) : query; }

    // The token's position in the grid; false if it is beyond the grid.
    __device__ __forceinline__ bool find(const Attention &p, unsigned y, unsigned x, unsigned &token) const {
        token = (top + y) * p.across + left + x;
        return y < p.h && x < p.w && top + y < p.down && left + x < p.across;
    }

    // Copies 16 bytes, number `at`, of a token's queries, keys or values (`part` 0, 1, 2), which begin at `from`, into
    // shared memory. Beyond the grid they come from `padding` [3, heads, D], or are zeros without it.
    template <typename T, int D, typename To>
    __device__ __forceinline__ void load(To to, const Attention &p, const T *from, long long step, const T *padding, unsigned part, unsigned head,
                                         unsigned y, unsigned x, unsigned at) const {
        unsigned token;
        const bool inside = y < p.h && x < p.w, real = find(p, y, x, token);
        const T *source = real ? from + token * step : padding ? padding + (part * p.heads + head) * D : from;
        load_async(to, source + at * 8, inside && (real || padding));
    }
};

// Relative-position terms of a warp's queries, times `factor`: their products with the rows of a table of relative
// positions, each stored at the position of the key with that distance from the query, among `side` positions per
// query. `place_of` returns the positions of the block's queries; this thread's begin at `row`.
template <typename T, int D, int M, int P, typename Place>
__device__ __forceinline__ void distances(f16 *to, int side, const unsigned (&queries)[M][D / 16][4], T (*table)[D + 8], int size, float factor,
                                          int row, int lane, Place place_of) {
    const int rows = 2 * size - 1;
    for (int start = 0; start < rows; start += 16 * P) {
        float c[M][2 * P][4];
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int n = 0; n < 2 * P; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) c[m][n][i] = 0.0f;
        const int blocks = min(P, (rows - start + 15) / 16);
        scores<T, D, M, P>(c, queries, table + start, lane, blocks);
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const int at = row + m * 16 + r * 8, place = place_of(at);
                f16 *line = to + at * side;
#pragma unroll
                for (int n = 0; n < 2 * P; n++)
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        const int key = place + size - 1 - (start + n * 8 + lane % 4 * 2 + i);
                        if (n / 2 < blocks && key >= 0 && key < size) line[key] = __float2half(c[m][n][2 * r + i] * factor);
                    }
            }
    }
}
