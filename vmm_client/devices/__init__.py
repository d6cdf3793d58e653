"""Device models, one per file, each after its data sheet and independent of any engine.

A device is driven by one thread, the one that serves the exits; what may be called from others
says so. Time comes from an injected clock in nanoseconds, interrupts leave through a callable that
takes the level of the line.
"""
