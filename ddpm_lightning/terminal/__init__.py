"""What a person at the terminal is told: mistakes, the nearest names, the choices."""
