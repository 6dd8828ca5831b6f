"""How fast the neurons are on the CPU: against other libraries, and against the limits of the machine."""
