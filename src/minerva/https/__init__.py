"""HTTP/1.1 over TLS for enrolment: a small client, and a server that shows client certificates."""
