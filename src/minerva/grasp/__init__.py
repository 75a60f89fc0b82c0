"""GRASP (RFC 8990): messages and the DULL instance."""
