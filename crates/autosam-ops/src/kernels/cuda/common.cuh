// Shared by all kernel files here: 16-bit types, sums within a warp.

#pragma once

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

__device__ __forceinline__ float warp_sum(float v) {
    for (int lane = 16; lane > 0; lane >>= 1) v += __shfl_xor_sync(0xffffffff, v, lane);
    return v;
}

// 16 bytes of T.
template <typename T> struct alignas(16) Vector {
    static constexpr unsigned N = 16 / sizeof(T);
    T v[N];
};
