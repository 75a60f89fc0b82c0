"""GRASP for programs: the API of RFC 8991, for any process of a host that runs a node (docs/asa.md)."""
