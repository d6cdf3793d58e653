"""What works on this host: micro-guests that try the modes and instructions kernels use, on each
engine. `/dev/kvm` alone tells little: where KVM itself runs in a virtual machine without nested
virtualisation, guest kernels may be emulated instruction by instruction, and incompletely."""
