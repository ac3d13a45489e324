// Attention with relative positions after FlashAttention-3 (arXiv 2407.08608), with Hopper's matrix instructions
// (wgmma). Four warps issue them together; they read keys and values directly from shared memory and run
// asynchronously. For heads of 64 and 80 channels; `attention.cu` covers all others, and other GPUs.

#include "attention.cuh"

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// A tile of `TILE` keys or values as wgmma reads it: lines of 64 channels (128 bytes), whose 16-byte parts are permuted
// by the line's number (the 128-byte swizzle). Channels beyond 64 follow in lines of 16 channels, whose halves are
// permuted (the 32-byte swizzle).
template <int D>
struct Swizzled {
    static constexpr unsigned BYTES = TILE * D * 2;
    // Groups of sixteen channels beyond 64.
    static constexpr int REST = D / 16 - 4;

    // Position of 16 bytes, part 0 to D / 8 of a line.
    static __device__ __forceinline__ unsigned place(unsigned line, unsigned part) {
        if (part < 8) return line * 128 + ((part ^ (line & 7)) << 4);
        return TILE * 128 + line * 32 + (((part - 8) ^ (line >> 2 & 1)) << 4);
    }
};

// Matrix descriptor for wgmma: address, bytes between groups of eight lines, and swizzle (1: 128 bytes, 3: 32 bytes).
template <unsigned EIGHT_LINES, unsigned SWIZZLE>
__device__ __forceinline__ uint64_t matrix(unsigned at) {
    uint64_t all;
    asm("mov.b64 %0, {%1, %2};\n" : "=l"(all) : "r"((at >> 4) + (1u << 16)), "n"(EIGHT_LINES >> 4 | SWIZZLE << 30));
    return all;
}

#define WGMMA(T, TYPE)                                                                                                                          \
    /* c [64, 64] += a [64, 16] b [16, 64]; TURNED: b lies as [16, 64], else as [64, 16]. */                                                    \
    template <int TURNED> __device__ __forceinline__ void product(float (&c)[32], const unsigned (&a)[4], uint64_t b, T) {                      \
        asm volatile("{.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"                                                                                \
                     "wgmma.mma_async.sync.aligned.m64n64k16.f32." TYPE "." TYPE " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, "     \
                     "%13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, {%32, %33, %34, %35}, "    \
                     "%36, p, 1, 1, %38;\n}\n"                                                                                                  \
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7]), "+f"(c[8]),              \
                       "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15]), "+f"(c[16]), "+f"(c[17]),      \
                       "+f"(c[18]), "+f"(c[19]), "+f"(c[20]), "+f"(c[21]), "+f"(c[22]), "+f"(c[23]), "+f"(c[24]), "+f"(c[25]), "+f"(c[26]),     \
                       "+f"(c[27]), "+f"(c[28]), "+f"(c[29]), "+f"(c[30]), "+f"(c[31])                                                         \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1), "n"(TURNED));                                                \
    }                                                                                                                                           \
    /* The same of 16 columns. */                                                                                                               \
    template <int TURNED> __device__ __forceinline__ void product(float (&c)[8], const unsigned (&a)[4], uint64_t b, T) {                       \
        asm volatile("{.reg .pred p;\nsetp.ne.b32 p, %13, 0;\n"                                                                                \
                     "wgmma.mma_async.sync.aligned.m64n16k16.f32." TYPE "." TYPE " {%0, %1, %2, %3, %4, %5, %6, %7}, {%8, %9, %10, %11}, "       \
                     "%12, p, 1, 1, %14;\n}\n"                                                                                                  \
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7])                           \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1), "n"(TURNED));                                                \
    }
WGMMA(bf16, "bf16")
WGMMA(f16, "f16")

// Orders the warps' register accesses before those of the products.
__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }
__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }
template <int PENDING> __device__ __forceinline__ void await_products() { asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(PENDING) : "memory"); }
// Prevents the compiler from moving accesses to registers that an asynchronous product still writes or reads across
// this point.
template <int N> __device__ __forceinline__ void settle(float (&c)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(c[i])::"memory");
}
__device__ __forceinline__ void settle(unsigned (&a)[4][4]) {
#pragma unroll
    for (int i = 0; i < 16; i++) asm volatile("" : "+r"(a[i / 4][i % 4])::"memory");
}

// Makes this thread's copies visible, also to the matrix units.
template <int PENDING> __device__ __forceinline__ void await_copies() {
    asm volatile("cp.async.wait_group %0;\nfence.proxy.async.shared::cta;\n" ::"n"(PENDING) : "memory");
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }

// Barriers in shared memory: some warps arrive, others wait for the end of a phase, which has a parity.
__device__ __forceinline__ void barrier_begin(unsigned at, unsigned count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(at), "r"(count) : "memory");
}
__device__ __forceinline__ void barrier_arrive(unsigned at) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(at) : "memory"); }
__device__ __forceinline__ void barrier_await(unsigned at, unsigned parity) {
    asm volatile("{\n.reg .pred p;\nAGAIN:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra DONE;\nbra AGAIN;\nDONE:\n}\n" ::"r"(at),
                 "r"(parity)
                 : "memory");
}

// State of a warp's queries, of which each thread holds two rows: weights and sums so far.
template <typename T, int D>
struct Sums {
    static constexpr int REST = Swizzled<D>::REST;
    unsigned queries[1][D / 16][4];
    // Scores, then weights of a tile's keys; and the weights in the format of the next product.
    float c[32];
    unsigned weights[4][4];
    // Sums of values: 64 channels, and the channels beyond.
    float values[32], rest[REST ? 8 : 1];
    float highest[2], total[2], shrink[2];

    __device__ __forceinline__ Sums() {
#pragma unroll
        for (int i = 0; i < 32; i++) values[i] = 0.0f;
#pragma unroll
        for (int i = 0; i < (REST ? 8 : 1); i++) rest[i] = 0.0f;
#pragma unroll
        for (int r = 0; r < 2; r++) highest[r] = -INFINITY, total[r] = 0.0f;
    }

    // Initialises c with the horizontal bias at N positions of a row of keys, which is the same in every row.
    template <int N>
    __device__ __forceinline__ void start(const __half2 (&beside)[N][2]) {
#pragma unroll
        for (int n = 0; n < 8; n++)
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const float2 two = __half22float2(beside[n % N][r]);
                c[n * 4 + 2 * r] = two.x;
                c[n * 4 + 2 * r + 1] = two.y;
            }
    }

    // Loads the queries of row `r` from `line`, or zeros without one.
    __device__ __forceinline__ void load_queries(int r, const T *line, int column) {
#pragma unroll
        for (int step = 0; step < D / 16; step++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                queries[0][step][r + 2 * half] = line ? *reinterpret_cast<const unsigned *>(line + step * 16 + half * 8 + column) : 0;
    }

    // c += scores of the keys at `keys`.
    __device__ __forceinline__ void begin_scores(unsigned keys) {
        settle(c);
        begin_products();
#pragma unroll
        for (int step = 0; step < 4; step++) product<0>(c, queries[0][step], matrix<1024, 1>(keys + step * 32), T());
        if constexpr (REST > 0) product<0>(c, queries[0][4], matrix<256, 3>(keys + TILE * 128), T());
        commit_products();
    }

    // Sums += the weighted values at `from`; between `begin_products` and an end.
    __device__ __forceinline__ void begin_sums(unsigned from) {
#pragma unroll
        for (int step = 0; step < 4; step++) {
            product<1>(values, weights[step], matrix<1024, 1>(from + step * 2048), T());
            if constexpr (REST > 0) product<1>(rest, weights[step], matrix<256, 3>(from + TILE * 128 + step * 512), T());
        }
        commit_products();
    }

    // Converts c from scores to weights, with factor `scale` and a shift; `shrink` is the factor for the sums so far.
    __device__ __forceinline__ void weigh(float scale, const float (&shift)[2]) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            auto score = [&](int i) -> float & { return c[i / 2 * 4 + 2 * r + i % 2]; };
            float peak = score(0);
#pragma unroll
            for (int i = 1; i < 16; i++) peak = fmaxf(peak, score(i));
            peak = fmaxf(peak, __shfl_xor_sync(0xffffffff, peak, 1));
            peak = fmaxf(peak, __shfl_xor_sync(0xffffffff, peak, 2));
            peak = fmaxf(fmaf(peak, scale, shift[r]), highest[r]);
            shrink[r] = power_of_two(highest[r] - peak);
            highest[r] = peak;
            const float offset = shift[r] - peak;
            float sum[2] = {0.0f, 0.0f};
#pragma unroll
            for (int i = 0; i < 16; i++) sum[i % 2] += score(i) = power_of_two(fmaf(score(i), scale, offset));
            total[r] = fmaf(total[r], shrink[r], sum[0] + sum[1]);
        }
    }

    // Applies the result of `weigh` to the sums so far and to the next product.
    __device__ __forceinline__ void take_over() {
        if (__any_sync(0xffffffff, shrink[0] != 1.0f || shrink[1] != 1.0f)) {
#pragma unroll
            for (int i = 0; i < 32; i++) values[i] *= shrink[i / 2 % 2];
#pragma unroll
            for (int i = 0; i < (REST ? 8 : 1); i++) rest[i] *= shrink[i / 2 % 2];
        }
#pragma unroll
        for (int step = 0; step < 4; step++)
#pragma unroll
            for (int i = 0; i < 4; i++) weights[step][i] = pack<T>(c[step * 8 + i / 2 * 4 + i % 2 * 2], c[step * 8 + i / 2 * 4 + i % 2 * 2 + 1]);
    }

    __device__ __forceinline__ void settle_all() {
        settle(values);
        settle(rest);
        settle(weights);
    }

    // Writes the weighted mean of row `r` to `line`; this thread's channels begin at `column`.
    __device__ __forceinline__ void store(int r, T *line, int column) const {
        float sum = total[r];
        sum += __shfl_xor_sync(0xffffffff, sum, 1);
        sum += __shfl_xor_sync(0xffffffff, sum, 2);
        if (!line) return;
        const float share = 1.0f / sum;
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
            const float *two = (n < 8 ? values + n * 4 : rest + (n - 8) * 4) + 2 * r;
            *reinterpret_cast<unsigned *>(line + n * 8 + column) = pack<T>(two[0] * share, two[1] * share);
        }
    }
};

// Relative-position terms of a warp's queries; the horizontal ones also in the format that initialises products. A row
// has `SIDE` positions and is used only by its own warp.
template <typename T, int D, int SIDE, int N>
__device__ __forceinline__ void relate(__half2 (&beside)[N][2], f16 *by_row, f16 *by_col, const unsigned (&queries)[1][D / 16][4], T (*down)[D + 8],
                                       T (*across)[D + 8], const Attention &p, const Window &window, unsigned first, int row, int lane) {
    // Horizontal bias in the scale of the scores, vertical bias as exponents of two.
    distances<T, D, 1, 4>(by_row, SIDE, queries, down, p.h, LOG2E, row, lane, [&](int at) { return int(window.row_of(first + at)); });
    distances<T, D, 1, 4>(by_col, SIDE, queries, across, p.w, 1.0f / p.scale, row, lane,
                          [&](int at) { return int(first + at - window.row_of(first + at) * p.w); });
    __syncwarp();
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int r = 0; r < 2; r++) beside[n][r] = *reinterpret_cast<const __half2 *>(by_col + (row + r * 8) * SIDE + n * 8 + lane % 4 * 2);
    __syncwarp();
}

// A whole grid of up to 64 x 64 tokens: 192 queries per block, one row of keys per tile. Four warps load keys and
// values while twelve others compute, in groups of four that do not wait for each other. The scores of a tile are
// computed while the weights of the previous tile are multiplied with its values.
constexpr int GRID_ROWS = 192;
constexpr int GRID_THREADS = 2 * GRID_ROWS + 128;
// Registers of a loading and of a computing thread; together they use all registers.
constexpr int FEW_REGISTERS = 32, MANY_REGISTERS = 160;

template <typename T, int D>
__device__ void attention_grid(const T *q, const T *k, const T *v, const T *down, const T *across, T *out, const Attention &p) {
    constexpr int STAGES = 6, LATE = 3;             // tiles that fit, and that are on their way at a time
    constexpr int SIDE = TILE + 8;                  // of a row of distances: eight rows lie in banks of their own
    constexpr unsigned STAGE = 2 * Swizzled<D>::BYTES;
    extern __shared__ __align__(1024) unsigned char memory[];
    T (*tables)[D + 8] = reinterpret_cast<T (*)[D + 8]>(memory + STAGES * STAGE);
    f16 *by_row = reinterpret_cast<f16 *>(tables + 4 * TILE), *by_col = by_row + GRID_ROWS * SIDE;
    // Barriers of each stage: filled, and read.
    const unsigned stages = (unsigned)__cvta_generic_to_shared(memory);
    const unsigned full = (unsigned)__cvta_generic_to_shared(by_col + GRID_ROWS * SIDE), empty = full + 8 * STAGES;

    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, tiles = p.h;
    const unsigned head = blockIdx.y % p.heads, image = blockIdx.y / p.heads, first = blockIdx.x * GRID_ROWS;
    q += image * p.q[0] + head * p.q[1];
    k += image * p.k[0] + head * p.k[1];
    v += image * p.v[0] + head * p.v[1];
    if (threadIdx.x == 0) {
        const unsigned groups = min(GRID_ROWS / 64u, (p.tokens - first + 63) / 64);
        for (int i = 0; i < STAGES; i++) {
            barrier_begin(full + 8 * i, 128);
            barrier_begin(empty + 8 * i, 4 * groups);
        }
    }
    __syncthreads();

    if (warp >= GRID_ROWS / 16) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(FEW_REGISTERS));
        const int step = p.k[2], line = threadIdx.x % 128 / 8, part = threadIdx.x % 8;
        for (int tile = 0; tile < tiles + LATE; tile++) {
            if (tile >= LATE) {
                await_copies<LATE - 1>();
                barrier_arrive(full + (tile - LATE) % STAGES * 8);
            }
            if (tile < tiles) {
                if (tile >= STAGES) barrier_await(empty + tile % STAGES * 8, (tile / STAGES - 1) & 1);
                const unsigned stage = stages + tile % STAGES * STAGE;
#pragma unroll
                for (int which = 0; which < 2; which++) {
                    const T *from = (which ? v : k) + tile * p.w * step;
                    const unsigned to = stage + which * Swizzled<D>::BYTES;
#pragma unroll
                    for (int at = line; at < TILE; at += 16)
                        load_async(to + Swizzled<D>::place(at, part), from + (at < p.w ? at * step : 0) + part * 8, at < p.w);
                    if constexpr (D > 64) {
                        const int at = threadIdx.x % 128 / 2, half = threadIdx.x % 2;
                        load_async(to + Swizzled<D>::place(at, 8 + half), from + (at < p.w ? at * step : 0) + 64 + half * 8, at < p.w);
                    }
                }
            }
            commit_copies();
        }
        return;
    }
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(MANY_REGISTERS));
    load_rows<T, D>(tables, down, D, 0, 2 * p.h - 1, 2 * TILE, 2 * GRID_ROWS);
    load_rows<T, D>(tables + 2 * TILE, across, D, 0, 2 * p.w - 1, 2 * TILE, 2 * GRID_ROWS);
    commit_copies();
    // Two threads per query.
    for (unsigned x = p.w + threadIdx.x % 2; x < TILE; x += 2) by_col[threadIdx.x / 2 * SIDE + x] = __float2half(-INFINITY);
    // This thread's rows: `row` and the eighth after it.
    const int row = warp * 16 + lane / 4, column = lane % 4 * 2;
    Sums<T, D> sums;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const unsigned query = first + row + r * 8;
        sums.load_queries(r, query < p.tokens ? q + query * p.q[2] : nullptr, column);
    }
    await_copies<0>();
    asm volatile("bar.sync 1, %0;\n" ::"n"(2 * GRID_ROWS) : "memory");
    // Groups without queries.
    if (first + warp / 4 * 64 >= p.tokens) return;
    const Window whole = {0, 0, Window::inverse_of(p.w)};
    __half2 beside[8][2];
    relate<T, D, SIDE>(beside, by_row, by_col, sums.queries, tables, tables + 2 * TILE, p, whole, first, row, lane);
    auto begin_scores = [&](int tile) {
        sums.start(beside);
        barrier_await(full + tile % STAGES * 8, tile / STAGES & 1);
        sums.settle_all();
        sums.begin_scores(stages + tile % STAGES * STAGE);
    };
    const float scale = p.scale * LOG2E;
    const f16 *above = by_row + row * SIDE;
    auto weigh = [&](int tile) {
        settle(sums.c);
        const float shift[2] = {__half2float(above[tile]), __half2float(above[8 * SIDE + tile])};
        sums.weigh(scale, shift);
    };
    // Memory that is no longer read.
    const unsigned nowhere = (unsigned)__cvta_generic_to_shared(by_col + warp * 16 * SIDE + lane * 2);

    begin_scores(0);
    await_products<0>();
    weigh(0);
    sums.take_over();
    for (int tile = 1; tile < tiles; tile++) {
        begin_scores(tile);
        sums.begin_sums(stages + (tile - 1) % STAGES * STAGE + Swizzled<D>::BYTES);
        await_products<1>();
        weigh(tile);
        // The assembler would insert a wait for the products here; it does not move the wait before a store.
        asm volatile("st.volatile.shared.f32 [%0], %1;\n" ::"r"(nowhere), "f"(sums.total[0] + sums.total[1]) : "memory");
        await_products<0>();
        sums.settle_all();
        if (lane == 0) barrier_arrive(empty + (tile - 1) % STAGES * 8);
        sums.take_over();
    }
    sums.settle_all();
    begin_products();
    sums.begin_sums(stages + (tiles - 1) % STAGES * STAGE + Swizzled<D>::BYTES);
    await_products<0>();
    sums.settle_all();
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const unsigned query = first + row + r * 8;
        sums.store(r, query < p.tokens ? out + ((size_t)(image * p.tokens + query) * p.heads + head) * D : nullptr, column);
    }
}

// Windows of up to 16 x 16 of a grid: 128 queries per block, keys in rows of 16 positions, four rows per tile. With two
// blocks of eight warps on a multiprocessor the registers do not suffice for scores and weights at the same time, so
// the groups alternate their products.
constexpr int WINDOW_ROWS = 128;

template <typename T, int D>
__device__ void attention_windows(const T *q, const T *k, const T *v, const T *down, const T *across, const T *padding, T *out, const Attention &p) {
    constexpr int THREADS = 2 * WINDOW_ROWS, PARTS = D / 8;
    constexpr int STAGES = 4, AHEAD = 2;            // tiles there are at most, and that are fetched before they are needed
    constexpr int SIDE = 16 + 8;
    constexpr unsigned STAGE = 2 * Swizzled<D>::BYTES;
    extern __shared__ __align__(1024) unsigned char memory[];
    const unsigned stages = (unsigned)__cvta_generic_to_shared(memory);
    // Queries and tables are loaded into the memory of the third and fourth tile.
    T (*queried)[D + 8] = reinterpret_cast<T (*)[D + 8]>(memory + AHEAD * STAGE);
    T (*tables)[D + 8] = queried + WINDOW_ROWS;
    f16 *by_row = reinterpret_cast<f16 *>(memory + STAGES * STAGE), *by_col = by_row + WINDOW_ROWS * SIDE;

    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, tiles = (p.h + 3) / 4;
    const unsigned head = blockIdx.y % p.heads, first = blockIdx.x * WINDOW_ROWS;
    unsigned image = blockIdx.y / p.heads;
    const Window window = Window::of(p, image);
    q += image * p.q[0] + head * p.q[1];
    k += image * p.k[0] + head * p.k[1];
    v += image * p.v[0] + head * p.v[1];
    auto load_keys = [&](int tile) {
        for (int i = threadIdx.x; i < TILE * PARTS; i += THREADS) {
            const unsigned at = i / PARTS, part = i % PARTS, y = tile * 4 + at / 16, x = at % 16;
            const unsigned to = stages + tile * STAGE + Swizzled<D>::place(at, part);
            window.load<T, D>(to, p, k, p.k[2], padding, 1, head, y, x, part);
            window.load<T, D>(to + Swizzled<D>::BYTES, p, v, p.v[2], padding, 2, head, y, x, part);
        }
    };

    for (int i = threadIdx.x; i < WINDOW_ROWS * PARTS; i += THREADS) {
        const unsigned query = first + i / PARTS, y = window.row_of(query), part = i % PARTS;
        window.load<T, D>(&queried[i / PARTS][part * 8], p, q, p.q[2], padding, 0, head, y, query - y * p.w, part);
    }
    load_rows<T, D>(tables, down, D, 0, 2 * p.h - 1, 32, THREADS);
    load_rows<T, D>(tables + 32, across, D, 0, 2 * p.w - 1, 32, THREADS);
    commit_copies();
    for (int tile = 0; tile < AHEAD; tile++) {
        if (tile < tiles) load_keys(tile);
        commit_copies();
    }
    for (int i = threadIdx.x; i < WINDOW_ROWS * 16; i += THREADS)
        if (i % 16 >= p.w) by_col[i / 16 * SIDE + i % 16] = __float2half(-INFINITY);
    await_copies<AHEAD>();
    __syncthreads();

    Sums<T, D> sums;
#pragma unroll
    for (int step = 0; step < D / 16; step++) matrices(sums.queries[0][step], &queried[warp * 16 + (lane & 15)][step * 16 + (lane >> 4) * 8]);
    // This thread's rows: `row` and the eighth after it.
    const int row = warp * 16 + lane / 4, column = lane % 4 * 2;
    __half2 beside[2][2];
    relate<T, D, SIDE>(beside, by_row, by_col, sums.queries, tables, tables + 32, p, window, first, row, lane);
    const float scale = p.scale * LOG2E;

    // Warps without queries only load.
    const bool busy = first + warp / 4 * 64 < p.h * p.w;
    for (int tile = 0; tile < tiles; tile++) {
        await_copies<AHEAD - 1>();
        __syncthreads();
        if (tile + AHEAD < tiles) load_keys(tile + AHEAD);
        commit_copies();
        if (!busy) continue;
        sums.start(beside);
        const unsigned keys = stages + tile * STAGE;
        sums.begin_scores(keys);
        await_products<0>();
        settle(sums.c);
        const int rows = p.h - tile * 4;
#pragma unroll
        for (int n = 0; n < 4; n++)
#pragma unroll
            for (int r = 0; r < 2; r++) {
                // Rows of keys of the last tile beyond the window have no weight.
                const float above = n < rows ? __half2float(by_row[(row + r * 8) * SIDE + tile * 4 + n]) : -INFINITY;
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    float &score = sums.c[n * 8 + i / 2 * 4 + 2 * r + i % 2];
                    score = fmaf(score, scale, above);
                }
            }
        const float shift[2] = {0.0f, 0.0f};
        sums.weigh(1.0f, shift);
        sums.take_over();
        sums.settle_all();
        begin_products();
        sums.begin_sums(keys + Swizzled<D>::BYTES);
        await_products<0>();
        sums.settle_all();
    }
    if (!busy) return;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const unsigned query = first + row + r * 8, y = window.row_of(query);
        unsigned token;
        const bool real = window.find(p, y, query - y * p.w, token);
        sums.store(r, real ? out + ((size_t)(image * p.down * p.across + token) * p.heads + head) * D : nullptr, column);
    }
}

#define ATTENTION(T, D)                                                                                                                         \
    extern "C" __global__ void __launch_bounds__(2 * WINDOW_ROWS, 2) attention_windows_##T##_##D(                                                \
        const T *q, const T *k, const T *v, const float *, const T *down, const T *across, const T *padding, T *out, Attention p) {              \
        attention_windows<T, D>(q, k, v, down, across, padding, out, p);                                                                        \
    }                                                                                                                                           \
    extern "C" __global__ void __launch_bounds__(GRID_THREADS, 1) attention_grid_##T##_##D(                                                     \
        const T *q, const T *k, const T *v, const float *, const T *down, const T *across, const T *, T *out, Attention p) {                     \
        attention_grid<T, D>(q, k, v, down, across, out, p);                                                                                    \
    }
ATTENTION(bf16, 64) ATTENTION(bf16, 80) ATTENTION(f16, 64) ATTENTION(f16, 80)

#endif
