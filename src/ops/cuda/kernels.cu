// Kernels of inference on a GPU: what candle's operations, composed, would pass through memory again and again.
// Compiled by build.rs; `mod.rs` beside this launches them and says what each expects.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

typedef __nv_bfloat16 bf16;
typedef __half f16;

template <typename T> __device__ __forceinline__ float to_float(T v);
template <> __device__ __forceinline__ float to_float(float v) { return v; }
template <> __device__ __forceinline__ float to_float(bf16 v) { return __bfloat162float(v); }
template <> __device__ __forceinline__ float to_float(f16 v) { return __half2float(v); }

template <typename T> __device__ __forceinline__ T from_float(float v);
template <> __device__ __forceinline__ float from_float(float v) { return v; }
template <> __device__ __forceinline__ bf16 from_float(float v) { return __float2bfloat16(v); }
template <> __device__ __forceinline__ f16 from_float(float v) { return __float2half(v); }

// The exact GELU; what is rounded to 16 bits, with erf by Abramowitz and Stegun 7.1.26, 1.5e-7 absolute.
template <typename T> __device__ __forceinline__ float gelu(float x) {
    if (sizeof(T) == 4) return 0.5f * x * (1.0f + erff(x * 0.70710678f));
    const float z = fabsf(x) * 0.70710678f, t = __fdividef(1.0f, fmaf(0.3275911f, z, 1.0f));
    const float series = t * fmaf(t, fmaf(t, fmaf(t, fmaf(t, 1.061405429f, -1.453152027f), 1.421413741f), -0.284496736f), 0.254829592f);
    const float tail = 0.5f * series * __expf(-z * z);
    return x * (x < 0.0f ? tail : 1.0f - tail);
}

// As `Activation` in mod.rs numbers them.
template <typename T> __device__ __forceinline__ float activate(float x, int activation) {
    switch (activation) {
        case 1: return gelu<T>(x);
        case 2: return fmaxf(x, 0.0f);
        case 3: return fminf(fmaxf(x, 0.0f), 6.0f);
        case 4: return x > 0.0f ? x : 0.01f * x;
        case 5: return tanhf(x);
        case 6: return 1.0f / (1.0f + expf(-x));
        default: return x;
    }
}

__device__ __forceinline__ float warp_sum(float v) {
    for (int lane = 16; lane > 0; lane >>= 1) v += __shfl_xor_sync(0xffffffff, v, lane);
    return v;
}

// 16 bytes of T.
template <typename T> struct alignas(16) Vector {
    static constexpr unsigned N = 16 / sizeof(T);
    T v[N];
};

// Four of T.
template <typename T> struct alignas(4 * sizeof(T)) Four { T v[4]; };

// x [rows, channels] += bias, then the activation; `n` vectors, which no row cuts.
template <typename T>
__device__ void finish_rows(Vector<T> *x, const float *bias, unsigned n, unsigned channels, int activation) {
    constexpr unsigned N = Vector<T>::N;
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        const unsigned c = i % (channels / N) * N;
        Vector<T> y = x[i];
#pragma unroll
        for (unsigned j = 0; j < N; j++) y.v[j] = from_float<T>(activate<T>(to_float(y.v[j]) + (bias ? bias[c + j] : 0.0f), activation));
        x[i] = y;
    }
}

// The same of planes [planes, inner], a channel each.
template <typename T>
__device__ void finish_planes(T *x, const float *bias, unsigned planes, unsigned inner, unsigned channels, int activation) {
    for (unsigned plane = blockIdx.y; plane < planes; plane += gridDim.y) {
        const float b = bias ? bias[plane % channels] : 0.0f;
        T *line = x + (size_t)plane * inner;
        for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < inner; i += gridDim.x * blockDim.x)
            line[i] = from_float<T>(activate<T>(to_float(line[i]) + b, activation));
    }
}

// out = a + b + bias in f32, b repeated along the batch; `n` and `m` fours, which no row of `channels` cuts.
template <typename A, typename B>
__device__ void add(const Four<A> *a, const Four<B> *b, const float *bias, Four<float> *out, unsigned n, unsigned m, unsigned channels) {
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        const Four<A> x = a[i];
        const Four<B> y = b[m == n ? i : i % m];
        const unsigned c = bias ? i % (channels / 4) * 4 : 0;
        Four<float> sum;
#pragma unroll
        for (int j = 0; j < 4; j++) sum.v[j] = to_float(x.v[j]) + to_float(y.v[j]) + (bias ? bias[c + j] : 0.0f);
        out[i] = sum;
    }
}

// Rows of `width`, a multiple of 4 and at most 128 CHUNKS, a warp each; a row is read once.
constexpr int CHUNKS = 10;

template <typename I, typename O>
__device__ void layer_norm(const I *x, const float *w, const float *b, O *out, unsigned rows, unsigned width, float eps) {
    const unsigned row = blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;
    const Four<I> *line = reinterpret_cast<const Four<I> *>(x + (size_t)row * width);
    Four<O> *target = reinterpret_cast<Four<O> *>(out + (size_t)row * width);
    const unsigned fours = width / 4;
    float values[CHUNKS][4], sum = 0.0f, squares = 0.0f;
#pragma unroll
    for (int k = 0; k < CHUNKS; k++) {
        const unsigned i = k * 32 + threadIdx.x;
        if (i >= fours) continue;
        const Four<I> four = line[i];
        for (int j = 0; j < 4; j++) sum += values[k][j] = to_float(four.v[j]);
    }
    const float mean = warp_sum(sum) / width;
#pragma unroll
    for (int k = 0; k < CHUNKS; k++)
        if (k * 32 + threadIdx.x < fours)
            for (int j = 0; j < 4; j++) squares += (values[k][j] - mean) * (values[k][j] - mean);
    const float inverse = rsqrtf(warp_sum(squares) / width + eps);
#pragma unroll
    for (int k = 0; k < CHUNKS; k++) {
        const unsigned i = k * 32 + threadIdx.x;
        if (i >= fours) continue;
        const Four<float> gain = reinterpret_cast<const Four<float> *>(w)[i], shift = reinterpret_cast<const Four<float> *>(b)[i];
        Four<O> four;
        for (int j = 0; j < 4; j++) four.v[j] = from_float<O>((values[k][j] - mean) * inverse * gain.v[j] + shift.v[j]);
        target[i] = four;
    }
}

// Layer norm over the channels of [N, C, pixels]: a block has 32 pixels, its eight warps share their channels.
template <typename I>
__device__ void layer_norm_planes(const I *x, const float *w, const float *b, float *out, unsigned channels, unsigned pixels, float eps) {
    __shared__ float sums[8][33];
    unsigned pixel = blockIdx.x * 32 + threadIdx.x;
    bool inside = pixel < pixels;
    size_t image = (size_t)blockIdx.y * channels * pixels;
    x += image;
    out += image;
    float totals[2] = {0.0f, 0.0f};
    for (int pass = 0; pass < 2; pass++) {
        float mean = totals[0] / channels, sum = 0.0f;
        for (unsigned c = threadIdx.y; inside && c < channels; c += 8) {
            float v = to_float(x[(size_t)c * pixels + pixel]);
            sum += pass ? (v - mean) * (v - mean) : v;
        }
        sums[threadIdx.y][threadIdx.x] = sum;
        __syncthreads();
        for (int i = 0; i < 8; i++) totals[pass] += sums[i][threadIdx.x];
        __syncthreads();
    }
    float mean = totals[0] / channels, inverse = rsqrtf(totals[1] / channels + eps);
    for (unsigned c = threadIdx.y; inside && c < channels; c += 8) {
        size_t at = (size_t)c * pixels + pixel;
        out[at] = (to_float(x[at]) - mean) * inverse * w[c] + b[c];
    }
}

struct Spatial {
    unsigned n, c, h, w, k, stride, padding, oh, ow;
    // Between a channel and the next, a pixel and the next, of input and output: channels first or last.
    unsigned last;
};

template <typename T>
__device__ void depthwise(const T *x, const float *weight, const float *bias, T *out, Spatial s, int activation) {
    const unsigned n = s.n * s.c * s.oh * s.ow;
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        unsigned c, pixel, image;
        if (s.last) {
            c = i % s.c; pixel = i / s.c;
            image = pixel / (s.ow * s.oh); pixel %= s.ow * s.oh;
        } else {
            pixel = i % (s.ow * s.oh); c = i / (s.ow * s.oh);
            image = c / s.c; c %= s.c;
        }
        const unsigned ox = pixel % s.ow, oy = pixel / s.ow, step = s.last ? s.c : 1;
        const T *plane = x + (s.last ? image * s.h * s.w * s.c + c : (image * s.c + c) * s.h * s.w);
        float sum = bias ? bias[c] : 0.0f;
        for (unsigned ky = 0; ky < s.k; ky++) {
            const unsigned y = oy * s.stride + ky - s.padding;
            if (y >= s.h) continue;
            for (unsigned kx = 0; kx < s.k; kx++) {
                const unsigned px = ox * s.stride + kx - s.padding;
                if (px < s.w) sum += weight[(c * s.k + ky) * s.k + kx] * to_float(plane[(y * s.w + px) * step]);
            }
        }
        out[i] = from_float<T>(activate<T>(sum, activation));
    }
}

// The largest of each window, [N, C, H, W].
template <typename T>
__device__ void max_pool(const T *x, T *out, Spatial s) {
    const unsigned n = s.n * s.c * s.oh * s.ow;
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        const unsigned ox = i % s.ow, oy = i / s.ow % s.oh;
        const T *plane = x + (size_t)(i / s.ow / s.oh) * s.h * s.w;
        float best = -INFINITY;
        for (unsigned ky = 0; ky < s.k; ky++) {
            const unsigned y = oy * s.stride + ky - s.padding;
            if (y >= s.h) continue;
            for (unsigned kx = 0; kx < s.k; kx++) {
                const unsigned px = ox * s.stride + kx - s.padding;
                if (px < s.w) best = fmaxf(best, to_float(plane[y * s.w + px]));
            }
        }
        out[i] = from_float<T>(best);
    }
}

// [N, A, B] -> [N, B, A], squares of 32 by blocks of 32 x 8.
template <typename T>
__device__ void transpose(const T *x, T *out, unsigned a, unsigned b) {
    __shared__ T square[32][33];
    const size_t image = (size_t)blockIdx.z * a * b;
    const unsigned column = blockIdx.x * 32, row = blockIdx.y * 32;
    for (unsigned i = threadIdx.y; i < 32; i += 8)
        if (row + i < a && column + threadIdx.x < b) square[i][threadIdx.x] = x[image + (size_t)(row + i) * b + column + threadIdx.x];
    __syncthreads();
    for (unsigned i = threadIdx.y; i < 32; i += 8)
        if (column + i < b && row + threadIdx.x < a) out[image + (size_t)(column + i) * a + row + threadIdx.x] = square[threadIdx.x][i];
}

// Gradient of the input of a depth-wise convolution, channels first.
__device__ void depthwise_input(const float *grad, const float *weight, float *dx, Spatial s) {
    size_t n = (size_t)s.n * s.c * s.h * s.w;
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) {
        unsigned x = i % s.w, y = i / s.w % s.h, c = i / s.w / s.h % s.c;
        size_t plane = i / s.w / s.h;
        float sum = 0.0f;
        for (unsigned ky = 0; ky < s.k; ky++) {
            unsigned down = y + s.padding - ky;
            if (y + s.padding < ky || down % s.stride || down / s.stride >= s.oh) continue;
            for (unsigned kx = 0; kx < s.k; kx++) {
                unsigned across = x + s.padding - kx;
                if (x + s.padding < kx || across % s.stride || across / s.stride >= s.ow) continue;
                sum += weight[(c * s.k + ky) * s.k + kx] * grad[(plane * s.oh + down / s.stride) * s.ow + across / s.stride];
            }
        }
        dx[i] = sum;
    }
}

// Gradient of the weights, channels first: a block for each of them.
__device__ void depthwise_weight(const float *x, const float *grad, float *dw, Spatial s) {
    __shared__ float sums[8];
    unsigned kx = blockIdx.x % s.k, ky = blockIdx.x / s.k % s.k, c = blockIdx.x / s.k / s.k;
    float sum = 0.0f;
    for (unsigned i = threadIdx.x; i < s.n * s.oh * s.ow; i += blockDim.x) {
        unsigned ox = i % s.ow, oy = i / s.ow % s.oh, image = i / s.ow / s.oh;
        unsigned y = oy * s.stride + ky - s.padding, px = ox * s.stride + kx - s.padding;
        size_t plane = (size_t)image * s.c + c;
        if (y < s.h && px < s.w) sum += x[(plane * s.h + y) * s.w + px] * grad[(plane * s.oh + oy) * s.ow + ox];
    }
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        float total = 0.0f;
        for (unsigned i = 0; i < blockDim.x / 32; i++) total += sums[i];
        dw[blockIdx.x] = total;
    }
}

// [N, C, H, W] -> [N, C K K, OH OW]: a row of the result for each blockIdx.y.
template <typename T>
__device__ void unfold(const T *x, T *out, Spatial s) {
    const unsigned pixels = s.oh * s.ow, rows = s.n * s.c * s.k * s.k;
    for (unsigned row = blockIdx.y; row < rows; row += gridDim.y) {
        const unsigned kx = row % s.k, ky = row / s.k % s.k;
        const T *plane = x + (size_t)(row / s.k / s.k) * s.h * s.w;
        T *line = out + (size_t)row * pixels;
        for (unsigned pixel = blockIdx.x * blockDim.x + threadIdx.x; pixel < pixels; pixel += gridDim.x * blockDim.x) {
            const unsigned y = pixel / s.ow * s.stride + ky - s.padding, px = pixel % s.ow * s.stride + kx - s.padding;
            line[pixel] = y < s.h && px < s.w ? plane[y * s.w + px] : from_float<T>(0.0f);
        }
    }
}

// Sums of what `unfold` spread: its gradient.
template <typename T>
__device__ void fold(const T *columns, T *out, Spatial s) {
    size_t n = (size_t)s.n * s.c * s.h * s.w;
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) {
        unsigned x = i % s.w, y = i / s.w % s.h;
        size_t plane = i / s.w / s.h;
        float sum = 0.0f;
        for (unsigned ky = 0; ky < s.k; ky++) {
            unsigned down = y + s.padding - ky;
            if (y + s.padding < ky || down % s.stride || down / s.stride >= s.oh) continue;
            for (unsigned kx = 0; kx < s.k; kx++) {
                unsigned across = x + s.padding - kx;
                if (x + s.padding < kx || across % s.stride || across / s.stride >= s.ow) continue;
                sum += to_float(columns[(((plane * s.k + ky) * s.k + kx) * s.oh + down / s.stride) * s.ow + across / s.stride]);
            }
        }
        out[i] = from_float<T>(sum);
    }
}

// Between a grid [n, h, w, c] and its windows [n rows cols, side side, c], zeros beyond the grid; c in units of 16 bytes.
__device__ void windows(const uint4 *from, uint4 *to, unsigned n, unsigned h, unsigned w, unsigned c, unsigned side, bool together) {
    unsigned rows = (h + side - 1) / side, cols = (w + side - 1) / side;
    const unsigned count = together ? n * h * w * c : n * rows * cols * side * side * c;
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
        const unsigned token = i / c, channel = i % c;
        if (together) {
            unsigned x = token % w, y = token / w % h, image = token / w / h;
            size_t window = ((size_t)image * rows + y / side) * cols + x / side;
            to[i] = from[((window * side + y % side) * side + x % side) * c + channel];
        } else {
            unsigned inside = token % (side * side);
            size_t window = token / (side * side);
            unsigned x = window % cols * side + inside % side, y = window / cols % rows * side + inside / side;
            size_t image = window / cols / rows;
            to[i] = y < h && x < w ? from[((image * h + y) * w + x) * c + channel] : make_uint4(0, 0, 0, 0);
        }
    }
}

// Attention of one head, after FlashAttention-2 (arXiv 2307.08691): a block has 64 queries, walks over 64 keys at a time and
// never holds more scores than these.
struct Attention {
    // Elements from an image, a head, a token to the next.
    long long q[3], k[3], v[3];
    unsigned heads, tokens, keys;
    float scale;
    // Of the grid, for relative positions.
    unsigned h, w;
};

constexpr int TILE = 64;
constexpr float LOG2E = 1.44269504f;

__device__ __forceinline__ void load_async(void *shared, const void *global, bool inside) {
    unsigned at = (unsigned)__cvta_generic_to_shared(shared);
    int bytes = inside ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(at), "l"(global), "r"(bytes));
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

// 64 rows from `first` of a matrix of `rows`, zeros beyond, into shared memory.
template <typename T, int D>
__device__ __forceinline__ void load_tile(T (*to)[D + 8], const T *from, long long step, unsigned first, unsigned rows) {
    constexpr int PARTS = D / 8;
    for (int i = threadIdx.x; i < TILE * PARTS; i += 128) {
        int row = i / PARTS, part = i % PARTS;
        bool inside = first + row < rows;
        load_async(&to[row][part * 8], from + (inside ? (first + row) * step : 0) + part * 8, inside);
    }
}

// c [16, 64] = a's rows times the tile's, transposed.
template <typename T, int D>
__device__ __forceinline__ void scores(float (&c)[8][4], const unsigned (&a)[D / 16][4], T (*tile)[D + 8], int lane) {
    for (int n = 0; n < 8; n++)
        for (int i = 0; i < 4; i++) c[n][i] = 0.0f;
#pragma unroll
    for (int step = 0; step < D / 16; step++) {
#pragma unroll
        for (int pair = 0; pair < 4; pair++) {
            unsigned b[4];
            matrices(b, &tile[pair * 16 + (lane & 7) + (lane >> 4) * 8][step * 16 + (lane >> 3 & 1) * 8]);
            multiply<T>(c[2 * pair], a[step], b[0], b[1]);
            multiply<T>(c[2 * pair + 1], a[step], b[2], b[3]);
        }
    }
}

// `qkv_bias`, where there is one, are biases of queries and values [3, heads, D] not yet in q and v. That of keys adds the same to all scores
// of a query, which is nothing after the softmax.
// BIAS: 0 none; 1 `bias` [heads, tokens, keys]; 2 relative positions, tables `down` [2h - 1, D] and `across` [2w - 1, D]; 3 the same where
// a tile of keys is a row of the grid: distances across are those of every tile.
template <typename T, int D, int BIAS>
__device__ void attention(const T *q, const T *k, const T *v, const float *bias, const T *down, const T *across, const float *qkv_bias, T *out, Attention p) {
    extern __shared__ __align__(16) unsigned char memory[];
    typedef T Tile[TILE][D + 8];
    Tile *keys = reinterpret_cast<Tile *>(memory);      // two of them
    Tile *values = keys + 2;                            // two of them
    const unsigned side = ((p.h > p.w ? p.h : p.w) + 9) & ~1u;  // rows of distances, apart in banks, pairs aligned
    f16 *by_row = reinterpret_cast<f16 *>(values + 2), *by_col = by_row + TILE * side;

    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const unsigned head = blockIdx.y % p.heads, first = blockIdx.x * TILE;
    const size_t image = blockIdx.y / p.heads;
    q += image * p.q[0] + head * p.q[1];
    k += image * p.k[0] + head * p.k[1];
    v += image * p.v[0] + head * p.v[1];

    load_tile<T, D>(values[1], q, p.q[2], first, p.tokens);
    // A window's tables are short: both come with the queries.
    const bool at_once = BIAS == 2 && 2 * p.h - 1 <= TILE && 2 * p.w - 1 <= TILE;
    if (at_once) {
        load_tile<T, D>(keys[0], down, D, 0, 2 * p.h - 1);
        load_tile<T, D>(keys[1], across, D, 0, 2 * p.w - 1);
    }
    asm volatile("cp.async.commit_group;\ncp.async.wait_group 0;\n" ::: "memory");
    __syncthreads();
    if (qkv_bias) {
        for (int i = threadIdx.x; i < TILE * D; i += 128) {
            T *cell = &values[1][i / D][i % D];
            *cell = from_float<T>(to_float(*cell) + qkv_bias[head * D + i % D]);
        }
        __syncthreads();
    }
    unsigned queries[D / 16][4];
    for (int step = 0; step < D / 16; step++) matrices(queries[step], &values[1][warp * 16 + (lane & 15)][step * 16 + (lane >> 4) * 8]);

    // Of this thread's two rows, in the tile and in all.
    const int row[2] = {warp * 16 + lane / 4, warp * 16 + lane / 4 + 8};
    const int column = lane % 4 * 2;
    float c[8][4];
    if (BIAS >= 2) {
        for (int table = 0; table < 2; table++) {
            const unsigned size = table ? p.w : p.h;
            f16 *distances = table ? by_col : by_row;
            for (unsigned start = 0; start < 2 * size - 1; start += TILE) {
                if (!at_once) {
                    __syncthreads();
                    load_tile<T, D>(keys[0], table ? across : down, D, start, 2 * size - 1);
                    asm volatile("cp.async.commit_group;\ncp.async.wait_group 0;\n" ::: "memory");
                    __syncthreads();
                }
                scores<T, D>(c, queries, keys[at_once ? table : 0], lane);
                for (int n = 0; n < 8; n++)
                    for (int i = 0; i < 4; i++) {
                        unsigned query = first + row[i / 2];
                        int place = table ? query % p.w : query / p.w;
                        int key = place + (int)size - 1 - (int)(start + n * 8 + column + i % 2);
                        if (key >= 0 && key < (int)size) distances[row[i / 2] * side + key] = __float2half(c[n][i] * LOG2E);
                    }
            }
        }
        __syncthreads();
    }

    float accumulated[D / 8][4];
    for (int n = 0; n < D / 8; n++)
        for (int i = 0; i < 4; i++) accumulated[n][i] = 0.0f;
    float highest[2] = {-INFINITY, -INFINITY}, total[2] = {0.0f, 0.0f};
    const float scale = p.scale * LOG2E;
    float across_row[8][4];
    if (BIAS == 3)
        for (int n = 0; n < 8; n++)
            for (int i = 0; i < 4; i++) across_row[n][i] = __half2float(by_col[row[i / 2] * side + n * 8 + column + i % 2]);
    // x / w for x < 65536.
    const unsigned inverse = BIAS == 2 ? 0xffffffffu / p.w + 1 : 0;
    const bool even = p.w % 2 == 0;
    const int tiles = (p.keys + TILE - 1) / TILE;
    __syncthreads();
    load_tile<T, D>(keys[0], k, p.k[2], 0, p.keys);
    load_tile<T, D>(values[0], v, p.v[2], 0, p.keys);
    asm volatile("cp.async.commit_group;\n" ::: "memory");
    for (int tile = 0; tile < tiles; tile++) {
        const int now = tile & 1;
        if (tile + 1 < tiles) {
            load_tile<T, D>(keys[now ^ 1], k, p.k[2], (tile + 1) * TILE, p.keys);
            load_tile<T, D>(values[now ^ 1], v, p.v[2], (tile + 1) * TILE, p.keys);
        }
        asm volatile("cp.async.commit_group;\ncp.async.wait_group 1;\n" ::: "memory");
        __syncthreads();
        scores<T, D>(c, queries, keys[now], lane);
        float peak[2] = {-INFINITY, -INFINITY}, down_row[2] = {0.0f, 0.0f};
        if (BIAS == 3)
            for (int r = 0; r < 2; r++) down_row[r] = __half2float(by_row[row[r] * side + tile]);
        const bool whole = (tile + 1) * TILE <= (int)p.keys;
#pragma unroll
        for (int n = 0; n < 8; n++) {
            const unsigned key = tile * TILE + n * 8 + column;
            if (BIAS == 2 && even) {
                const unsigned y = __umulhi(key, inverse), x = key - y * p.w;
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    const float2 across = __half22float2(*reinterpret_cast<const __half2 *>(by_col + row[r] * side + x));
                    const float down = __half2float(by_row[row[r] * side + min(y, p.h - 1)]);
                    c[n][2 * r] = fmaf(c[n][2 * r], scale, down + across.x);
                    c[n][2 * r + 1] = fmaf(c[n][2 * r + 1], scale, down + across.y);
                }
            } else {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const unsigned at = key + i % 2;
                    float added = 0.0f;
                    if (BIAS == 1) {
                        const unsigned query = first + row[i / 2];
                        if (query < p.tokens && at < p.keys) added = bias[((size_t)head * p.tokens + query) * p.keys + at] * LOG2E;
                    }
                    if (BIAS == 2) {
                        const unsigned y = p.w == 1 ? at : __umulhi(at, inverse), x = at - y * p.w;
                        if (y < p.h) added = __half2float(by_row[row[i / 2] * side + y]) + __half2float(by_col[row[i / 2] * side + x]);
                    }
                    if (BIAS == 3) added = across_row[n][i] + down_row[i / 2];
                    c[n][i] = fmaf(c[n][i], scale, added);
                }
            }
#pragma unroll
            for (int i = 0; i < 4; i++) {
                if (!whole && key + i % 2 >= p.keys) c[n][i] = -INFINITY;
                peak[i / 2] = fmaxf(peak[i / 2], c[n][i]);
            }
        }
        float shrink[2], sum[2] = {0.0f, 0.0f};
        for (int r = 0; r < 2; r++) {
            peak[r] = fmaxf(peak[r], __shfl_xor_sync(0xffffffff, peak[r], 1));
            peak[r] = fmaxf(peak[r], __shfl_xor_sync(0xffffffff, peak[r], 2));
            peak[r] = fmaxf(peak[r], highest[r]);
            shrink[r] = exp2f(highest[r] - peak[r]);
            highest[r] = peak[r];
        }
#pragma unroll
        for (int n = 0; n < 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                c[n][i] = exp2f(c[n][i] - highest[i / 2]);
                sum[i / 2] += c[n][i];
            }
        for (int r = 0; r < 2; r++) total[r] = total[r] * shrink[r] + sum[r];
#pragma unroll
        for (int n = 0; n < D / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) accumulated[n][i] *= shrink[i / 2];
#pragma unroll
        for (int step = 0; step < 4; step++) {
            const unsigned a[4] = {pack<T>(c[2 * step][0], c[2 * step][1]), pack<T>(c[2 * step][2], c[2 * step][3]),
                                   pack<T>(c[2 * step + 1][0], c[2 * step + 1][1]), pack<T>(c[2 * step + 1][2], c[2 * step + 1][3])};
#pragma unroll
            for (int pair = 0; pair < D / 16; pair++) {
                unsigned b[4];
                matrices_turned(b, &values[now][step * 16 + (lane & 7) + (lane >> 3 & 1) * 8][pair * 16 + (lane >> 4) * 8]);
                multiply<T>(accumulated[2 * pair], a, b[0], b[1]);
                multiply<T>(accumulated[2 * pair + 1], a, b[2], b[3]);
            }
        }
        __syncthreads();
    }
    for (int r = 0; r < 2; r++) {
        total[r] += __shfl_xor_sync(0xffffffff, total[r], 1);
        total[r] += __shfl_xor_sync(0xffffffff, total[r], 2);
        const unsigned query = first + row[r];
        if (query >= p.tokens) continue;
        T *line = out + ((image * p.tokens + query) * p.heads + head) * D;
        const float *shift = qkv_bias ? qkv_bias + (2 * p.heads + head) * D + column : nullptr;
        const float share = 1.0f / total[r];
        for (int n = 0; n < D / 8; n++) {
            const float a = shift ? shift[n * 8] : 0.0f, b = shift ? shift[n * 8 + 1] : 0.0f;
            *reinterpret_cast<unsigned *>(line + n * 8 + column) =
                pack<T>(fmaf(accumulated[n][2 * r], share, a), fmaf(accumulated[n][2 * r + 1], share, b));
        }
    }
}

#define ATTENTION(T, D, BIAS)                                                                                              \
    extern "C" __global__ void __launch_bounds__(128) attention_##T##_##D##_##BIAS(                                        \
        const T *q, const T *k, const T *v, const float *bias, const T *down, const T *across, const float *qkv_bias, T *out, Attention p) { \
        attention<T, D, BIAS>(q, k, v, bias, down, across, qkv_bias, out, p);                                                        \
    }
#define ATTENTIONS(T, D) ATTENTION(T, D, 0) ATTENTION(T, D, 1) ATTENTION(T, D, 2) ATTENTION(T, D, 3)
ATTENTIONS(bf16, 16) ATTENTIONS(bf16, 32) ATTENTIONS(bf16, 64) ATTENTIONS(bf16, 80)
ATTENTIONS(f16, 16) ATTENTIONS(f16, 32) ATTENTIONS(f16, 64) ATTENTIONS(f16, 80)

#define KERNELS(T, NAME)                                                                                                   \
    extern "C" __global__ void finish_rows_##NAME(Vector<T> *x, const float *bias, unsigned n, unsigned channels, int f) {  \
        finish_rows<T>(x, bias, n, channels, f);                                                                           \
    }                                                                                                                      \
    extern "C" __global__ void finish_planes_##NAME(T *x, const float *bias, unsigned planes, unsigned inner, unsigned channels, int f) { \
        finish_planes<T>(x, bias, planes, inner, channels, f);                                                             \
    }                                                                                                                      \
    extern "C" __global__ void max_pool_##NAME(const T *x, T *out, Spatial s) { max_pool<T>(x, out, s); }                  \
    extern "C" __global__ void transpose_##NAME(const T *x, T *out, unsigned a, unsigned b) { transpose<T>(x, out, a, b); } \
    extern "C" __global__ void layer_norm_planes_##NAME(const T *x, const float *w, const float *b, float *out, unsigned channels, unsigned pixels, float eps) { \
        layer_norm_planes<T>(x, w, b, out, channels, pixels, eps);                                                         \
    }                                                                                                                      \
    extern "C" __global__ void depthwise_##NAME(const T *x, const float *w, const float *b, T *out, Spatial s, int f) {    \
        depthwise<T>(x, w, b, out, s, f);                                                                                  \
    }                                                                                                                      \
    extern "C" __global__ void unfold_##NAME(const T *x, T *out, Spatial s) { unfold<T>(x, out, s); }                      \
    extern "C" __global__ void fold_##NAME(const T *x, T *out, Spatial s) { fold<T>(x, out, s); }
KERNELS(float, f32) KERNELS(bf16, bf16) KERNELS(f16, f16)

#define LAYER_NORM(I, IN, O, OUT)                                                                                          \
    extern "C" __global__ void layer_norm_##IN##_##OUT(const I *x, const float *w, const float *b, O *out, unsigned rows, unsigned width, float eps) { \
        layer_norm<I, O>(x, w, b, out, rows, width, eps);                                                                  \
    }
LAYER_NORM(float, f32, float, f32) LAYER_NORM(float, f32, bf16, bf16) LAYER_NORM(float, f32, f16, f16)
LAYER_NORM(bf16, bf16, float, f32) LAYER_NORM(bf16, bf16, bf16, bf16) LAYER_NORM(f16, f16, float, f32) LAYER_NORM(f16, f16, f16, f16)

#define ADD(A, IN, B, OTHER)                                                                                               \
    extern "C" __global__ void add_##IN##_##OTHER(const Four<A> *a, const Four<B> *b, const float *bias, Four<float> *out, unsigned n, unsigned m, unsigned channels) { \
        add<A, B>(a, b, bias, out, n, m, channels);                                                                        \
    }
ADD(float, f32, float, f32) ADD(float, f32, bf16, bf16) ADD(float, f32, f16, f16)
ADD(bf16, bf16, float, f32) ADD(bf16, bf16, bf16, bf16) ADD(f16, f16, float, f32) ADD(f16, f16, f16, f16)

extern "C" __global__ void windows_apart(const uint4 *from, uint4 *to, unsigned n, unsigned h, unsigned w, unsigned c, unsigned side) {
    windows(from, to, n, h, w, c, side, false);
}
extern "C" __global__ void windows_together(const uint4 *from, uint4 *to, unsigned n, unsigned h, unsigned w, unsigned c, unsigned side) {
    windows(from, to, n, h, w, c, side, true);
}
extern "C" __global__ void depthwise_input_f32(const float *grad, const float *w, float *dx, Spatial s) { depthwise_input(grad, w, dx, s); }
extern "C" __global__ void depthwise_weight_f32(const float *x, const float *grad, float *dw, Spatial s) { depthwise_weight(x, grad, dw, s); }
