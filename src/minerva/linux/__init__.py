"""All that knows the kernel: netlink, namespaces, TUN, nftables, raw sockets."""
