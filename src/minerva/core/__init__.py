"""What every package shares: errors, strict readers, secrets, back-off. Imports nothing of Minerva."""
