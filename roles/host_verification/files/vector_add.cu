// Adds two vectors on every GPU, checks each sum, and prints one JSON object.
// Exit status: 0 every sum is right, 1 a sum is wrong, 2 CUDA refused.
#include <cstdio>
#include <cstdlib>
#include <cuda_runtime.h>

static const int COUNT = 1 << 20;

__global__ void add(const float *a, const float *b, float *sum, int count) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) sum[i] = a[i] + b[i];
}

static void check(cudaError_t status, const char *what) {
    if (status == cudaSuccess) return;
    printf("{\"error\": \"%s: %s (%s)\"}\n", what, cudaGetErrorString(status), cudaGetErrorName(status));
    exit(2);
}

static int wrong_sums(float *a, float *b, float *sum) {
    const size_t bytes = COUNT * sizeof(float);
    float *device_a, *device_b, *device_sum;
    for (int i = 0; i < COUNT; ++i) {
        a[i] = (float)i;
        b[i] = (float)(2 * (COUNT - i));
        sum[i] = 0;
    }
    check(cudaMalloc(&device_a, bytes), "cudaMalloc");
    check(cudaMalloc(&device_b, bytes), "cudaMalloc");
    check(cudaMalloc(&device_sum, bytes), "cudaMalloc");
    check(cudaMemcpy(device_a, a, bytes, cudaMemcpyHostToDevice), "copy to the GPU");
    check(cudaMemcpy(device_b, b, bytes, cudaMemcpyHostToDevice), "copy to the GPU");
    add<<<(COUNT + 255) / 256, 256>>>(device_a, device_b, device_sum, COUNT);
    check(cudaGetLastError(), "start of the kernel");
    check(cudaDeviceSynchronize(), "run of the kernel");
    check(cudaMemcpy(sum, device_sum, bytes, cudaMemcpyDeviceToHost), "copy from the GPU");
    int wrong = 0;
    for (int i = 0; i < COUNT; ++i) wrong += sum[i] != a[i] + b[i];
    cudaFree(device_a);
    cudaFree(device_b);
    cudaFree(device_sum);
    return wrong;
}

int main() {
    const size_t bytes = COUNT * sizeof(float);
    float *a = (float *)malloc(bytes), *b = (float *)malloc(bytes), *sum = (float *)malloc(bytes);
    int devices, runtime, driver, all_wrong = 0;
    if (!a || !b || !sum) return 2;
    check(cudaGetDeviceCount(&devices), "cudaGetDeviceCount");
    check(cudaRuntimeGetVersion(&runtime), "cudaRuntimeGetVersion");
    check(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
    // Everything is printed at the end, so that an error stands alone.
    char *report = (char *)malloc(devices * 512 + 1);
    if (!report) return 2;
    report[0] = '\0';
    size_t used = 0;
    for (int index = 0; index < devices; ++index) {
        cudaDeviceProp properties;
        size_t free_bytes, total_bytes;
        check(cudaSetDevice(index), "cudaSetDevice");
        check(cudaGetDeviceProperties(&properties, index), "cudaGetDeviceProperties");
        check(cudaMemGetInfo(&free_bytes, &total_bytes), "cudaMemGetInfo");
        int wrong = wrong_sums(a, b, sum);
        all_wrong += wrong;
        used += snprintf(report + used, 512,
                         "%s{\"index\": %d, \"name\": \"%s\", \"pci_bus_id\": \"%04x:%02x:%02x.0\", "
                         "\"compute_capability\": \"%d.%d\", \"total_bytes\": %zu, \"free_bytes\": %zu, \"wrong_sums\": %d}",
                         index ? ", " : "", index, properties.name, properties.pciDomainID, properties.pciBusID,
                         properties.pciDeviceID, properties.major, properties.minor, total_bytes, free_bytes, wrong);
    }
    printf("{\"runtime_cuda\": \"%d.%d\", \"driver_cuda\": \"%d.%d\", \"sums\": %d, \"devices\": [%s]}\n", runtime / 1000,
           runtime % 1000 / 10, driver / 1000, driver % 1000 / 10, COUNT, report);
    return all_wrong ? 1 : 0;
}
