"""Protocol cores under a virtual clock."""
