"""Work on other machines through TVM's own RPC: a tracker knows the devices, each runs a server.

`tracker` asks and `serve` starts them, `runner` measures MetaSchedule's candidates on every device
of a key, `network` runs a whole bundle there. **TVM's RPC has no authentication**: whoever reaches
a tracker or server runs what they like on it, so everything stays on loopback unless told
otherwise, and other machines are reached through tunnels.

Connections live in processes of their own (`process`, `session`): TVM's client waits for an answer
without limit, and only a process can be ended from outside.
"""

from __future__ import annotations
