"""What needs serial lines of real drivers: ``make test-serial`` brings them, in a guest of QEMU."""
