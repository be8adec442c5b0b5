"""How torch's threads wait for each other on the CPU.

Imported before torch: libgomp, which runs its threads, reads these variables when it is loaded. Left alone
it lets a thread that waits look 300,000 times before it sleeps. Where another program has one of the cores,
what the thread waits for is often not running meanwhile, and two threads are slower than one. libgomp itself
goes down to 1,000 looks where it starts more threads than there are cores; other programs it does not see.
Whoever sets one of the variables is obeyed. Measured in `docs/scaling.md`.
"""

import os
import sys

if "torch" not in sys.modules and not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "1000"
