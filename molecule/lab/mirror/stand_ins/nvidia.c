/* Stand-in for the driver's kernel module (test lab): modinfo, depmod and dkms read it, no kernel can load it. */
#define MODULE_INFO(tag, info) \
    __attribute__((section(".modinfo"), used, aligned(1))) static const char modinfo_##tag[] = #tag "=" info
MODULE_INFO(version, "@VERSION@");
MODULE_INFO(license, "@LICENSE@");
MODULE_INFO(description, "Stand-in for the NVIDIA driver (test lab)");
MODULE_INFO(alias, "pci:v000010DEd*sv*sd*bc03sc00i00*");
MODULE_INFO(name, "nvidia");
