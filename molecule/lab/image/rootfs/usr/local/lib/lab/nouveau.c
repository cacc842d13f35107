/* Stand-in for the nouveau module: modinfo and depmod read it, no kernel can load it. */
#define MODULE_INFO(tag, info) \
    __attribute__((section(".modinfo"), used, aligned(1))) static const char modinfo_##tag[] = #tag "=" info
MODULE_INFO(license, "GPL and additional rights");
MODULE_INFO(description, "Stand-in for nouveau (test lab)");
MODULE_INFO(name, "nouveau");
