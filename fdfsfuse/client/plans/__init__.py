"""What the clients do, without I/O: which request goes where, and what is done when it fails.

A *plan* is a generator.  It yields the steps of `fdfsfuse.client.plans.steps`; who runs the plan
carries each out and sends its result in, or throws the error that it ended with.  The trio client
(`fdfsfuse.client.runner`) and the blocking one (`fdfsfuse.blocking.runner`) run the same plans.
"""
