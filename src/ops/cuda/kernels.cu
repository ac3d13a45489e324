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

// out = a + b + bias, summed in f32, b repeated along the batch; `n` and `m` fours, which no row of `channels` cuts.
template <typename A, typename B, typename O>
__device__ void add(const Four<A> *a, const Four<B> *b, const float *bias, Four<O> *out, unsigned n, unsigned m, unsigned channels) {
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        const Four<A> x = a[i];
        const Four<B> y = b[m == n ? i : i % m];
        const unsigned c = bias ? i % (channels / 4) * 4 : 0;
        Four<O> sum;
#pragma unroll
        for (int j = 0; j < 4; j++) sum.v[j] = from_float<O>(to_float(x.v[j]) + to_float(y.v[j]) + (bias ? bias[c + j] : 0.0f));
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

// Pixels [h, w, 3] -> planes [3, size, size], a scale and a shift each, zeros beyond the picture.
extern "C" __global__ void normalise(const uint8_t *rgb, float *out, unsigned h, unsigned w, unsigned size, float sr, float sg, float sb, float r, float g, float b) {
    const unsigned n = size * size;
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        const unsigned x = i % size, y = i / size;
        const bool inside = x < w && y < h;
        const uint8_t *pixel = rgb + (inside ? (size_t)(y * w + x) * 3 : 0);
        // Rounded twice, as on a CPU.
        out[i] = inside ? __fadd_rn(__fmul_rn(pixel[0], sr), r) : 0.0f;
        out[n + i] = inside ? __fadd_rn(__fmul_rn(pixel[1], sg), g) : 0.0f;
        out[2 * n + i] = inside ? __fadd_rn(__fmul_rn(pixel[2], sb), b) : 0.0f;
    }
}

// Logits [planes, h, w] -> probabilities in bytes [planes, H, W], enlarged bilinearly (half-pixel centres) first.
extern "C" __global__ void probability_bytes(const float *logits, uint8_t *out, unsigned planes, unsigned h, unsigned w, unsigned height, unsigned width) {
    const float down = (float)h / height, across = (float)w / width;
    const unsigned n = planes * height * width;
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        const float y = fmaxf((i / width % height + 0.5f) * down - 0.5f, 0.0f), x = fmaxf((i % width + 0.5f) * across - 0.5f, 0.0f);
        const unsigned top = min((unsigned)y, h - 1), left = min((unsigned)x, w - 1), right = min(left + 1, w - 1);
        const float *above = logits + (size_t)(i / width / height) * h * w + top * w, *below = above + (top + 1 < h ? w : 0);
        const float part = x - left, a = above[left] + part * (above[right] - above[left]), b = below[left] + part * (below[right] - below[left]);
        const float logit = a + (y - top) * (b - a);
        out[i] = (uint8_t)(255.0f / (1.0f + expf(-logit)) + 0.5f);
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

// Attention of one head, after FlashAttention-2 (arXiv 2307.08691): a block has 64 queries, of a grid more, walks over 64 keys at a
// time and never holds more scores than these.
struct Attention {
    // Elements from an image, a head, a token to the next.
    long long q[3], k[3], v[3];
    unsigned heads, tokens, keys;
    float scale;
    // For relative positions: a window's sides, the sides of the grid that is taken apart into such windows, and how many of these lie
    // side by side.
    unsigned h, w, down, across, columns;
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

__device__ __forceinline__ float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
    return y;
}

// Rows `first` to `first + count` of a matrix of `rows`, zeros beyond, into shared memory.
template <typename T, int D>
__device__ __forceinline__ void load_rows(T (*to)[D + 8], const T *from, long long step, unsigned first, unsigned rows, int count) {
    constexpr int PARTS = D / 8;
    for (int i = threadIdx.x; i < count * PARTS; i += 128) {
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

    // The token's place in the grid; false beyond it.
    __device__ __forceinline__ bool find(const Attention &p, unsigned y, unsigned x, unsigned &token) const {
        token = (top + y) * p.across + left + x;
        return y < p.h && x < p.w && top + y < p.down && left + x < p.across;
    }
};

// BIAS: 0 none; 1 `bias` [heads, tokens, keys]; 2 relative positions, tables `down` [2h - 1, D] and `across` [2w - 1, D], of windows up to
// 16 x 16; 3 the same up to 64 x 64. Keys then lie in rows of 16 or 64 places, so that 16 keys are of one row, and distances across the same
// in each; places beyond the window are minus infinity across. A window's tokens beyond the grid are `padding` [3, heads, D].
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
    // Queries come where keys and values will lie; a window's beside them, so that its first keys come meanwhile.
    T (*queried)[D + 8] = BIAS == 2 ? values[2] : keys[0];
    T (*tables)[D + 8] = BIAS == 2 ? values[4] : values[0];
    f16 *by_row = reinterpret_cast<f16 *>(BIAS == 2 ? values + 5 : values + 2), *by_col = by_row + ROWS * SIDE;

    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const unsigned head = blockIdx.y % p.heads, first = blockIdx.x * ROWS;
    unsigned image = blockIdx.y / p.heads;
    Window window = {0, 0};
    if (GRID) {
        const unsigned windows = p.columns * ((p.down + p.h - 1) / p.h), number = image % windows;
        image /= windows;
        window = {number / p.columns * p.h, number % p.columns * p.w};
    }
    q += image * p.q[0] + head * p.q[1];
    k += image * p.k[0] + head * p.k[1];
    v += image * p.v[0] + head * p.v[1];
    // x / w for x < 65536; a row of one is its own.
    const unsigned inverse = GRID && p.w > 1 ? 0xffffffffu / p.w + 1 : 0;
    auto row_of = [&](unsigned x) { return p.w == 1 ? x : __umulhi(x, inverse); };
    // 16 bytes of a token of a window's `part` (0 queries, 1 keys, 2 values), which begins at `from`.
    auto load_token = [&](T *to, const T *from, long long step, unsigned part, unsigned y, unsigned x, unsigned at) {
        unsigned token;
        const bool inside = y < p.h && x < p.w, real = window.find(p, y, x, token);
        const T *source = real ? from + token * step : padding ? padding + (part * p.heads + head) * D : from;
        load_async(to, source + at * 8, inside && (real || padding));
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
            const unsigned query = first + i / PARTS, y = row_of(query);
            load_token(&queried[i / PARTS][i % PARTS * 8], q, p.q[2], 0, y, query - y * p.w, i % PARTS);
        }
        if (BIAS == 2) {
            load_rows<T, D>(tables, down, D, 0, 2 * p.h - 1, 32);
            load_rows<T, D>(tables + 32, across, D, 0, 2 * p.w - 1, 32);
        }
    } else {
        load_rows<T, D>(queried, q, p.q[2], first, p.tokens, ROWS);
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
        const float unscaled = 1.0f / p.scale;
        for (int table = 0; table < 2; table++) {
            const int size = table ? p.w : p.h, rows = 2 * size - 1;
            f16 *distances = table ? by_col : by_row;
            if (BIAS == 3) {
                __syncthreads();
                load_rows<T, D>(tables, table ? across : down, D, 0, rows, 2 * TILE);
                asm volatile("cp.async.commit_group;\ncp.async.wait_group 0;\n" ::: "memory");
                __syncthreads();
            }
            for (int start = 0; start < rows; start += 16 * P) {
#pragma unroll
                for (int m = 0; m < M; m++)
#pragma unroll
                    for (int n = 0; n < 2 * P; n++)
#pragma unroll
                        for (int i = 0; i < 4; i++) c[m][n][i] = 0.0f;
                const int blocks = min(P, (rows - start + 15) / 16);
                scores<T, D, M, P>(c, queries, tables + (BIAS == 2 ? table * 32 : start), lane, blocks);
#pragma unroll
                for (int m = 0; m < M; m++)
#pragma unroll
                    for (int r = 0; r < 2; r++) {
                        const int at = row + m * 16 + r * 8;
                        const unsigned y = row_of(first + at), place = table ? first + at - y * p.w : y;
                        f16 *line = distances + at * SIDE;
#pragma unroll
                        for (int n = 0; n < 2 * P; n++)
#pragma unroll
                            for (int i = 0; i < 2; i++) {
                                const int key = (int)place + size - 1 - (start + n * 8 + column + i);
                                // Across as the products' scores, down as the powers of two that these become.
                                if (n / 2 < blocks && key >= 0 && key < size) line[key] = __float2half(c[m][n][2 * r + i] * (table ? unscaled : LOG2E));
                            }
                    }
            }
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
    // In a row of 16 places these stay.
    __half2 beside[M][2][2];
    if (BIAS == 2)
        for (int m = 0; m < M; m++)
            for (int n = 0; n < 2; n++)
                for (int r = 0; r < 2; r++)
                    beside[m][n][r] = *reinterpret_cast<const __half2 *>(by_col + (row + m * 16 + r * 8) * SIDE + n * 8 + column);

    const int tiles = BIAS == 3 ? p.h : BIAS == 2 ? (p.h + 3) / 4 : (p.keys + TILE - 1) / TILE;
    // Warps that have no query of their own only load.
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
            const unsigned query = first + row + m * 16 + r * 8, y = row_of(query);
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

// Puts `count` parts of the sums of one query together, each D sums weighted by powers of two, their highest exponent and their weights' sum,
// `step` apart: sum d, with the exponent and the weights that belong to it.
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

// The same of up to 6 queries to many keys, without a bias: blocks for each head and part of the keys, whose threads share them. `parts`
// [parts, images, heads, 6, D + 2] are sums weighted by powers of two, their highest exponent and their weights' sum.
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
        // A thread without a key has none of it.
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

// Puts the parts together: a block for each head.
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

#define ADD(A, IN, B, OTHER, O, OUT)                                                                                       \
    extern "C" __global__ void add_##IN##_##OTHER##_##OUT(const Four<A> *a, const Four<B> *b, const float *bias, Four<O> *out, unsigned n, unsigned m, unsigned channels) { \
        add<A, B, O>(a, b, bias, out, n, m, channels);                                                                     \
    }
#define ADDS(O, OUT) ADD(float, f32, float, f32, O, OUT) ADD(float, f32, bf16, bf16, O, OUT) ADD(float, f32, f16, f16, O, OUT) \
    ADD(bf16, bf16, float, f32, O, OUT) ADD(bf16, bf16, bf16, bf16, O, OUT) ADD(f16, f16, float, f32, O, OUT) ADD(f16, f16, f16, f16, O, OUT)
ADDS(float, f32) ADDS(bf16, bf16) ADDS(f16, f16)

extern "C" __global__ void windows_apart(const uint4 *from, uint4 *to, unsigned n, unsigned h, unsigned w, unsigned c, unsigned side) {
    windows(from, to, n, h, w, c, side, false);
}
extern "C" __global__ void windows_together(const uint4 *from, uint4 *to, unsigned n, unsigned h, unsigned w, unsigned c, unsigned side) {
    windows(from, to, n, h, w, c, side, true);
}
extern "C" __global__ void depthwise_input_f32(const float *grad, const float *w, float *dx, Spatial s) { depthwise_input(grad, w, dx, s); }
extern "C" __global__ void depthwise_weight_f32(const float *x, const float *grad, float *dw, Spatial s) { depthwise_weight(x, grad, dw, s); }
