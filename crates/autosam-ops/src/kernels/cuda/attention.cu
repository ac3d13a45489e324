// Attention after FlashAttention-2 (arXiv 2307.08691), for any GPU with 16-bit tensor cores. Launched by `attention.rs`
// in this folder.

#include "attention.cuh"

// BIAS: 0 none; 1 `bias` [heads, tokens, keys]; 2 relative positions, tables `down` [2h - 1, D] and `across` [2w - 1,
// D], of windows up to 16 x 16; 3 the same up to 64 x 64. Keys are then arranged in rows of 16 or 64 positions, so that
// 16 keys belong to one row and horizontal distances are the same in each row; positions beyond the window have a
// horizontal bias of minus infinity. A window's tokens beyond the grid are `padding` [3, heads, D].
template <typename T, int D, int BIAS>
__device__ void attention(const T *q, const T *k, const T *v, const float *bias, const T *down, const T *across, const T *padding, T *out, const Attention &p) {
    constexpr bool GRID = BIAS >= 2;
    constexpr int M = BIAS == 3 && D <= 64 ? 3 : GRID ? 2 : 1;  // times 16 queries a warp: as many as registers hold
    constexpr int P = M == 3 ? 2 : 4;                           // times 16 keys whose scores exist at a time
    constexpr int ROWS = 64 * M;
    constexpr int WIDTH = BIAS == 2 ? 16 : 64;                  // places of a row of keys
    constexpr int SIDE = WIDTH + 8;                             // of a row of distances: eight rows lie in banks of their own
    constexpr int PARTS = D / 8;
    extern __shared__ __align__(16) unsigned char memory[];
    typedef T Tile[TILE][D + 8];
    Tile *keys = reinterpret_cast<Tile *>(memory);              // two of them
    Tile *values = keys + 2;                                    // two of them
    // Queries are loaded into the memory of keys and values; a window's queries have separate memory, so that its first
    // keys load at the same time.
    T (*queried)[D + 8] = BIAS == 2 ? values[2] : keys[0];
    T (*tables)[D + 8] = BIAS == 2 ? values[4] : values[0];
    f16 *by_row = reinterpret_cast<f16 *>(BIAS == 2 ? values + 5 : values + 2), *by_col = by_row + ROWS * SIDE;

    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const unsigned head = blockIdx.y % p.heads, first = blockIdx.x * ROWS;
    unsigned image = blockIdx.y / p.heads;
    const Window window = GRID ? Window::of(p, image) : Window{};
    q += image * p.q[0] + head * p.q[1];
    k += image * p.k[0] + head * p.k[1];
    v += image * p.v[0] + head * p.v[1];
    auto load_token = [&](T *to, const T *from, long long step, unsigned part, unsigned y, unsigned x, unsigned at) {
        window.load<T, D>(to, p, from, step, padding, part, head, y, x, at);
    };
    auto load_keys = [&](int tile) {
        for (int i = threadIdx.x; i < TILE * PARTS; i += 128) {
            const unsigned at = i / PARTS, part = i % PARTS, place = tile * TILE + at;
            T *key = &keys[tile & 1][at][part * 8], *value = &values[tile & 1][at][part * 8];
            if (GRID) {
                load_token(key, k, p.k[2], 1, place / WIDTH, place % WIDTH, part);
                load_token(value, v, p.v[2], 2, place / WIDTH, place % WIDTH, part);
            } else {
                const bool inside = place < p.keys;
                load_async(key, k + (inside ? place * p.k[2] : 0) + part * 8, inside);
                load_async(value, v + (inside ? place * p.v[2] : 0) + part * 8, inside);
            }
        }
        asm volatile("cp.async.commit_group;\n" ::: "memory");
    };

    if (GRID) {
        for (int i = threadIdx.x; i < ROWS * PARTS; i += 128) {
            const unsigned query = first + i / PARTS, y = window.row_of(query);
            load_token(&queried[i / PARTS][i % PARTS * 8], q, p.q[2], 0, y, query - y * p.w, i % PARTS);
        }
        if (BIAS == 2) {
            load_rows<T, D>(tables, down, D, 0, 2 * p.h - 1, 32, 128);
            load_rows<T, D>(tables + 32, across, D, 0, 2 * p.w - 1, 32, 128);
        }
    } else {
        load_rows<T, D>(queried, q, p.q[2], first, p.tokens, ROWS, 128);
    }
    asm volatile("cp.async.commit_group;\n" ::: "memory");
    if (BIAS == 2) {
        load_keys(0);
        asm volatile("cp.async.wait_group 1;\n" ::: "memory");
    } else {
        asm volatile("cp.async.wait_group 0;\n" ::: "memory");
    }
    __syncthreads();
    unsigned queries[M][D / 16][4];
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int step = 0; step < D / 16; step++)
            matrices(queries[m][step], &queried[(warp * M + m) * 16 + (lane & 15)][step * 16 + (lane >> 4) * 8]);

    // This thread's rows: `row` and the eighth after it, of each m.
    const int row = warp * 16 * M + lane / 4, column = lane % 4 * 2;
    float c[M][2 * P][4];
    const float scale = p.scale * LOG2E;
    if (GRID) {
        for (int i = threadIdx.x; i < ROWS * WIDTH; i += 128)
            if (i % WIDTH >= p.w) by_col[i / WIDTH * SIDE + i % WIDTH] = __float2half(-INFINITY);
        for (int table = 0; table < 2; table++) {
            if (BIAS == 3) {
                __syncthreads();
                load_rows<T, D>(tables, table ? across : down, D, 0, 2 * (table ? p.w : p.h) - 1, 2 * TILE, 128);
                asm volatile("cp.async.commit_group;\ncp.async.wait_group 0;\n" ::: "memory");
                __syncthreads();
            }
            // Horizontal bias in the scale of the scores, vertical bias as exponents of two.
            distances<T, D, M, P>(table ? by_col : by_row, SIDE, queries, tables + (BIAS == 2 ? table * 32 : 0), table ? p.w : p.h,
                                  table ? 1.0f / p.scale : LOG2E, row, lane, [&](int at) {
                                      const unsigned y = window.row_of(first + at);
                                      return int(table ? first + at - y * p.w : y);
                                  });
        }
        __syncthreads();
    }
    if (BIAS != 2) {
        __syncthreads();
        load_keys(0);
    }

    float accumulated[M][D / 8][4], highest[M][2], total[M][2];
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < D / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) accumulated[m][n][i] = 0.0f;
        for (int r = 0; r < 2; r++) highest[m][r] = -INFINITY, total[m][r] = 0.0f;
    }
    // These are constant within a row of 16 positions.
    __half2 beside[M][2][2];
    if (BIAS == 2)
        for (int m = 0; m < M; m++)
            for (int n = 0; n < 2; n++)
                for (int r = 0; r < 2; r++)
                    beside[m][n][r] = *reinterpret_cast<const __half2 *>(by_col + (row + m * 16 + r * 8) * SIDE + n * 8 + column);

    const int tiles = BIAS == 3 ? p.h : BIAS == 2 ? (p.h + 3) / 4 : (p.keys + TILE - 1) / TILE;
    // Warps without queries only load.
    const bool busy = first + warp * 16 * M < p.tokens;
    for (int tile = 0; tile < tiles; tile++) {
        const int now = tile & 1;
        if (tile + 1 < tiles) load_keys(tile + 1);
        else asm volatile("cp.async.commit_group;\n" ::: "memory");
        asm volatile("cp.async.wait_group 1;\n" ::: "memory");
        __syncthreads();
        const int whole = BIAS == 3 ? 4 : BIAS == 2 ? min(4, (int)p.h - tile * 4) : min(4, ((int)p.keys - tile * TILE + 15) / 16);
#pragma unroll 1
        for (int part = 0; part < 4 / P; part++) {
            const int blocks = min(P, whole - part * P), place = part * P * 16;
            if (!busy || blocks <= 0) continue;
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int n = 0; n < 2 * P; n++)
#pragma unroll
                    for (int r = 0; r < 2; r++) {
                        float2 start = make_float2(0.0f, 0.0f);
                        if (BIAS == 2) start = __half22float2(beside[m][n % 2][r]);
                        if (BIAS == 3) start = __half22float2(*reinterpret_cast<const __half2 *>(by_col + (row + m * 16 + r * 8) * SIDE + place + n * 8 + column));
                        c[m][n][2 * r] = start.x;
                        c[m][n][2 * r + 1] = start.y;
                    }
            scores<T, D, M, P>(c, queries, &keys[now][place], lane, blocks);
            bool grown = false;
            float shrink[M][2];
#pragma unroll
            for (int m = 0; m < M; m++) {
                float peak[2] = {-INFINITY, -INFINITY}, shift[2] = {0.0f, 0.0f};
                if (BIAS == 3)
                    for (int r = 0; r < 2; r++) shift[r] = __half2float(by_row[(row + m * 16 + r * 8) * SIDE + tile]);
#pragma unroll
                for (int n = 0; n < 2 * P; n++) {
                    if (n / 2 >= blocks) continue;
                    if (BIAS == 2) {
#pragma unroll
                        for (int r = 0; r < 2; r++) {
                            const float above = __half2float(by_row[(row + m * 16 + r * 8) * SIDE + tile * 4 + n / 2]);
                            c[m][n][2 * r] = fmaf(c[m][n][2 * r], scale, above);
                            c[m][n][2 * r + 1] = fmaf(c[m][n][2 * r + 1], scale, above);
                        }
                    }
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        if (!GRID) {
                            const unsigned key = tile * TILE + n * 8 + column + i % 2, query = first + row + m * 16 + i / 2 * 8;
                            if (BIAS == 1 && query < p.tokens && key < p.keys)
                                c[m][n][i] = fmaf(c[m][n][i], scale, bias[((size_t)head * p.tokens + query) * p.keys + key] * LOG2E);
                            if (key >= p.keys) c[m][n][i] = -INFINITY;
                        }
                        peak[i / 2] = fmaxf(peak[i / 2], c[m][n][i]);
                    }
                }
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    peak[r] = fmaxf(peak[r], __shfl_xor_sync(0xffffffff, peak[r], 1));
                    peak[r] = fmaxf(peak[r], __shfl_xor_sync(0xffffffff, peak[r], 2));
                    if (BIAS == 0 || BIAS == 3) peak[r] = fmaf(peak[r], scale, shift[r]);
                    peak[r] = fmaxf(peak[r], highest[m][r]);
                    shrink[m][r] = power_of_two(highest[m][r] - peak[r]);
                    grown |= peak[r] > highest[m][r];
                    highest[m][r] = peak[r];
                    float sum = 0.0f;
                    const float offset = shift[r] - peak[r];
#pragma unroll
                    for (int n = 0; n < 2 * P; n++) {
                        if (n / 2 >= blocks) continue;
#pragma unroll
                        for (int i = 2 * r; i < 2 * r + 2; i++) {
                            c[m][n][i] = power_of_two(BIAS == 0 || BIAS == 3 ? fmaf(c[m][n][i], scale, offset) : c[m][n][i] + offset);
                            sum += c[m][n][i];
                        }
                    }
                    total[m][r] = fmaf(total[m][r], shrink[m][r], sum);
                }
            }
            if (__any_sync(0xffffffff, grown)) {
#pragma unroll
                for (int m = 0; m < M; m++)
#pragma unroll
                    for (int n = 0; n < D / 8; n++)
#pragma unroll
                        for (int i = 0; i < 4; i++) accumulated[m][n][i] *= shrink[m][i / 2];
            }
#pragma unroll
            for (int step = 0; step < P; step++) {
                if (step >= blocks) continue;
                unsigned a[M][4];
#pragma unroll
                for (int m = 0; m < M; m++)
#pragma unroll
                    for (int i = 0; i < 4; i++) a[m][i] = pack<T>(c[m][2 * step + i / 2][i % 2 * 2], c[m][2 * step + i / 2][i % 2 * 2 + 1]);
#pragma unroll
                for (int pair = 0; pair < D / 16; pair++) {
                    unsigned b[4];
                    matrices_turned(b, &values[now][place + step * 16 + (lane & 7) + (lane >> 3 & 1) * 8][pair * 16 + (lane >> 4) * 8]);
#pragma unroll
                    for (int m = 0; m < M; m++) {
                        multiply<T>(accumulated[m][2 * pair], a[m], b[0], b[1]);
                        multiply<T>(accumulated[m][2 * pair + 1], a[m], b[2], b[3]);
                    }
                }
            }
        }
        __syncthreads();
    }
    if (!busy) return;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float sum = total[m][r];
            sum += __shfl_xor_sync(0xffffffff, sum, 1);
            sum += __shfl_xor_sync(0xffffffff, sum, 2);
            const unsigned query = first + row + m * 16 + r * 8, y = window.row_of(query);
            unsigned token = query;
            if (query >= p.tokens || (GRID && !window.find(p, y, query - y * p.w, token))) continue;
            const size_t tokens = GRID ? p.down * p.across : p.tokens;
            T *line = out + ((image * tokens + token) * p.heads + head) * D;
            const float share = 1.0f / sum;
#pragma unroll
            for (int n = 0; n < D / 8; n++)
                *reinterpret_cast<unsigned *>(line + n * 8 + column) = pack<T>(accumulated[m][n][2 * r] * share, accumulated[m][n][2 * r + 1] * share);
        }
}

// Combines `count` partial results of one query, `step` apart. Each has D sums weighted by powers of two, their highest
// exponent and the sum of their weights. Returns sum d with its exponent and weights.
template <int D>
__device__ __forceinline__ float joined(const float *first, size_t step, unsigned count, int d, float &peak, float &weights) {
    peak = -INFINITY;
    weights = 0.0f;
    float sum = 0.0f;
    for (unsigned part = 0; part < count; part++) peak = fmaxf(peak, first[part * step + D]);
    for (unsigned part = 0; part < count; part++) {
        const float *one = first + part * step, share = one[D] == -INFINITY ? 0.0f : power_of_two(one[D] - peak);
        weights = fmaf(one[D + 1], share, weights);
        sum = fmaf(one[d], share, sum);
    }
    return sum;
}

// The same for up to 6 queries and many keys, without a bias. Each block processes a part of the keys of one head,
// shared by its threads. `parts` [parts, images, heads, 6, D + 2] are sums weighted by powers of two, their highest
// exponent and the sum of their weights.
constexpr int FEW = 6;
constexpr int FEW_THREADS = 128;

template <typename T, int D>
__device__ void few_queries(const T *q, const T *k, const T *v, float *parts, const Attention &p) {
    __shared__ float queries[FEW][D], sums[FEW_THREADS / 32][FEW][D + 2];
    const unsigned head = blockIdx.x % p.heads, image = blockIdx.x / p.heads;
    q += image * p.q[0] + head * p.q[1];
    k += image * p.k[0] + head * p.k[1];
    v += image * p.v[0] + head * p.v[1];
    parts += ((size_t)blockIdx.y * gridDim.x + blockIdx.x) * FEW * (D + 2);
    for (int i = threadIdx.x; i < p.tokens * D; i += FEW_THREADS) queries[i / D][i % D] = to_float(q[i / D * p.q[2] + i % D]) * p.scale * LOG2E;
    __syncthreads();
    float highest[FEW], total[FEW], accumulated[FEW][D];
#pragma unroll
    for (int j = 0; j < FEW; j++) {
        highest[j] = -INFINITY;
        total[j] = 0.0f;
#pragma unroll
        for (int d = 0; d < D; d++) accumulated[j][d] = 0.0f;
    }
    for (unsigned at = blockIdx.y * FEW_THREADS + threadIdx.x; at < p.keys; at += gridDim.y * FEW_THREADS) {
        Vector<T> key[D / 8], value[D / 8];
#pragma unroll
        for (int i = 0; i < D / 8; i++) {
            key[i] = reinterpret_cast<const Vector<T> *>(k + at * p.k[2])[i];
            value[i] = reinterpret_cast<const Vector<T> *>(v + at * p.v[2])[i];
        }
#pragma unroll
        for (int j = 0; j < FEW; j++) {
            if (j >= p.tokens) continue;
            float score = 0.0f;
#pragma unroll
            for (int d = 0; d < D; d++) score = fmaf(queries[j][d], to_float(key[d / 8].v[d % 8]), score);
            const float peak = fmaxf(highest[j], score), shrink = power_of_two(highest[j] - peak), weight = power_of_two(score - peak);
            highest[j] = peak;
            total[j] = fmaf(total[j], shrink, weight);
#pragma unroll
            for (int d = 0; d < D; d++) accumulated[j][d] = fmaf(accumulated[j][d], shrink, weight * to_float(value[d / 8].v[d % 8]));
        }
    }
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int j = 0; j < FEW; j++) {
        if (j >= p.tokens) continue;
        float peak = highest[j];
        for (int other = 16; other > 0; other >>= 1) peak = fmaxf(peak, __shfl_xor_sync(0xffffffff, peak, other));
        // A thread without a key contributes nothing.
        const float share = highest[j] == -INFINITY ? 0.0f : power_of_two(highest[j] - peak);
        const float sum = warp_sum(total[j] * share);
        if (lane == 0) sums[warp][j][D] = peak, sums[warp][j][D + 1] = sum;
#pragma unroll
        for (int d = 0; d < D; d++) {
            const float one = warp_sum(accumulated[j][d] * share);
            if (lane == 0) sums[warp][j][d] = one;
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < p.tokens * D; i += FEW_THREADS) {
        const int j = i / D, d = i % D;
        float peak, weights, *part = parts + j * (D + 2);
        part[d] = joined<D>(sums[0][j], FEW * (D + 2), FEW_THREADS / 32, d, peak, weights);
        if (d == 0) part[D] = peak, part[D + 1] = weights;
    }
}

// Combines the parts, one block per head.
template <typename T, int D>
__device__ void few_queries_joined(const float *parts, T *out, unsigned count, const Attention &p) {
    const unsigned head = blockIdx.x % p.heads, image = blockIdx.x / p.heads;
    for (int i = threadIdx.x; i < p.tokens * D; i += FEW_THREADS) {
        const int j = i / D, d = i % D;
        const size_t step = (size_t)gridDim.x * FEW * (D + 2);
        const float *first = parts + ((size_t)blockIdx.x * FEW + j) * (D + 2);
        float peak, weights;
        const float sum = joined<D>(first, step, count, d, peak, weights);
        out[((size_t)(image * p.tokens + j) * p.heads + head) * D + d] = from_float<T>(sum / weights);
    }
}

#define ATTENTION(T, D, BIAS)                                                                                              \
    extern "C" __global__ void __launch_bounds__(128, 2) attention_##T##_##D##_##BIAS(                                     \
        const T *q, const T *k, const T *v, const float *bias, const T *down, const T *across, const T *padding, T *out, Attention p) { \
        attention<T, D, BIAS>(q, k, v, bias, down, across, padding, out, p);                                                        \
    }
#define ATTENTIONS(T, D) ATTENTION(T, D, 0) ATTENTION(T, D, 1) ATTENTION(T, D, 2) ATTENTION(T, D, 3)
#define FEW_QUERIES(T, D)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(FEW_THREADS) few_queries_##T##_##D(const T *q, const T *k, const T *v, float *parts, Attention p) { \
        few_queries<T, D>(q, k, v, parts, p);                                                                              \
    }                                                                                                                      \
    extern "C" __global__ void few_queries_joined_##T##_##D(const float *parts, T *out, unsigned count, Attention p) {     \
        few_queries_joined<T, D>(parts, out, count, p);                                                                    \
    }
FEW_QUERIES(bf16, 16) FEW_QUERIES(f16, 16)
ATTENTIONS(bf16, 16) ATTENTIONS(bf16, 32) ATTENTIONS(bf16, 64) ATTENTIONS(bf16, 80)
ATTENTIONS(f16, 16) ATTENTIONS(f16, 32) ATTENTIONS(f16, 64) ATTENTIONS(f16, 80)
