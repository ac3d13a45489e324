// GPU inference kernels. They replace compositions of candle's operations, which pass through memory repeatedly.
// Compiled by build.rs; `mod.rs` in this folder launches them and documents their arguments.

#include "common.cuh"

// The exact GELU; for 16-bit results with erf by Abramowitz and Stegun 7.1.26 (absolute error 1.5e-7).
template <typename T> __device__ __forceinline__ float gelu(float x) {
    if (sizeof(T) == 4) return 0.5f * x * (1.0f + erff(x * 0.70710678f));
    const float z = fabsf(x) * 0.70710678f, t = __fdividef(1.0f, fmaf(0.3275911f, z, 1.0f));
    const float series = t * fmaf(t, fmaf(t, fmaf(t, fmaf(t, 1.061405429f, -1.453152027f), 1.421413741f), -0.284496736f), 0.254829592f);
    const float tail = 0.5f * series * __expf(-z * z);
    return x * (x < 0.0f ? tail : 1.0f - tail);
}

// Numbered as in mod.rs.
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

// Four of T.
template <typename T> struct alignas(4 * sizeof(T)) Four { T v[4]; };

// x [rows, channels] += bias, then the activation; `n` vectors, none of which crosses a row.
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

// The same for planes [planes, inner], one channel each.
template <typename T>
__device__ void finish_planes(T *x, const float *bias, unsigned planes, unsigned inner, unsigned channels, int activation) {
    for (unsigned plane = blockIdx.y; plane < planes; plane += gridDim.y) {
        const float b = bias ? bias[plane % channels] : 0.0f;
        T *line = x + (size_t)plane * inner;
        for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < inner; i += gridDim.x * blockDim.x)
            line[i] = from_float<T>(activate<T>(to_float(line[i]) + b, activation));
    }
}

// out = a + b + bias, summed in f32, b repeated along the batch; `n` and `m` groups of four, none of which crosses a
// row of `channels`.
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

// One warp per row of `width` elements, a multiple of 4 and at most 128 CHUNKS; a row is read once.
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

// Layer norm over the channels of [N, C, pixels]: a block processes 32 pixels, and its eight warps share the channels.
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
    // Strides between channels and between pixels, of input and output: channels first or last.
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

// Max pooling of [N, C, H, W].
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

// Pixels [h, w, 3] -> planes [3, size, size], scaled and shifted per channel, zeros beyond the image.
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

// Logits [planes, h, w] -> probabilities as bytes [planes, H, W]; logits are first enlarged bilinearly (half-pixel
// centres).
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

// Gradient of the weights, channels first: one block per weight.
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

// [N, C, H, W] -> [N, C K K, OH OW]: one row of the result per blockIdx.y.
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

// Gradient of `unfold`: sums the unfolded values.
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

// Copies between a grid [n, h, w, c] and its windows [n rows cols, side side, c], zeros beyond the grid; c in units of
// 16 bytes.
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
