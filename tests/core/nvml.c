/* Of NVIDIA's management library what mlos.host.gpu asks, of two GPUs; the second tells its memory alone.
   With STARTS=9 it is a library whose driver is not loaded. */

#include <string.h>

#ifndef STARTS
#define STARTS 0
#endif

enum { OK = 0, NOT_SUPPORTED = 3 };
struct device { const char *uuid; int whole; };
struct utilization { unsigned gpu, memory; };
struct memory { unsigned long long total, free, used; };

static struct device devices[] = {{"GPU-one", 1}, {"GPU-two", 0}};

int nvmlInitWithFlags(unsigned flags) { return STARTS; }
const char *nvmlErrorString(int status) { return "Not Supported"; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return OK; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, struct device **device) { *device = &devices[index]; return OK; }

int nvmlDeviceGetUUID(struct device *device, char *uuid, unsigned length) {
    strncpy(uuid, device->uuid, length);
    return OK;
}

int nvmlDeviceGetMemoryInfo(struct device *device, struct memory *memory) {
    *memory = (struct memory){.total = 4000, .free = 3000, .used = 1000};
    return OK;
}

int nvmlDeviceGetUtilizationRates(struct device *device, struct utilization *rates) {
    *rates = (struct utilization){.gpu = 25, .memory = 50};
    return device->whole ? OK : NOT_SUPPORTED;
}

int nvmlDeviceGetPowerUsage(struct device *device, unsigned *milliwatts) {
    *milliwatts = 70500;
    return device->whole ? OK : NOT_SUPPORTED;
}

int nvmlDeviceGetEnforcedPowerLimit(struct device *device, unsigned *milliwatts) {
    *milliwatts = 300000;
    return device->whole ? OK : NOT_SUPPORTED;
}

int nvmlDeviceGetTotalEnergyConsumption(struct device *device, unsigned long long *millijoules) {
    *millijoules = 1234500;
    return device->whole ? OK : NOT_SUPPORTED;
}
