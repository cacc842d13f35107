"""Which doors open: knock.py ADDRESS:PORT... Prints {door: whether a connection was made} as JSON."""

import json
import socket
import sys

opened = {}
for door in sys.argv[1:]:
    address, _, port = door.rpartition(":")
    try:
        socket.create_connection((address, int(port)), timeout=2).close()
        opened[door] = True
    except OSError:
        opened[door] = False
print(json.dumps(opened))
