"""What image/test checks, one module a subject."""
