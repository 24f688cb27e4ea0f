"""What can be measured, by id, in the order in which it is."""

from . import bulk, distance, leak, raw, requests, split, sse, start, tunnels

#: id -> (title, function of a Bench)
PROBES = {
    "P1": ("one TCP stream, a large download", raw.rate),
    "P2": ("processor time of that download, both ends", raw.cpu),
    "P3": ("forwarded HTTP, one large body down and up", bulk.http_bulk),
    "P4": ("forwarded HTTP, 1 KiB answers, 64 and 256 kept-alive connections", requests.kept_alive),
    "P5": ("forwarded HTTP, 1 KiB answers, a new connection per request", requests.new_connections),
    "P6": ("forwarded HTTP, one request at a time", requests.one_at_a_time),
    "P7": ("idle tunnels: memory of each", tunnels.idle),
    "P8": ("one stream over 50 and 100 ms", distance.long_ways),
    "P9": ("small requests beside a bulk transfer", distance.beside_bulk),
    "P10": ("api and proxy as two processes against one", split.split),
    "P11": ("one event to a thousand subscribers", sse.events),
    "P12": ("a request with a cookie against one without", requests.me),
    "P13": ("tunnels accepted a second", tunnels.accept),
    "P14": ("growth: requests and memory beside up to 20,000 sessions", tunnels.growth),
    "P15": ("start to ready, size of the program", start.start),
    "STORM": ("time until all devices are back after the proxy was killed", tunnels.storm),
    "LEAK": ("what is left after a million requests and ten thousand reconnects", leak.leak),
}
