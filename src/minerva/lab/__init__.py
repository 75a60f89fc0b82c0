"""A whole network of real nodes in namespaces on one machine."""
