"""nginx as the origin, and as two plain hops: over TCP (`stream`) and over HTTP (`proxy_pass`)."""

import os
import re
import shutil
import subprocess

from .processes import Process, free_port
from .subject import Entry, Missing, Subject

INSTALL = "apt-get install -y --no-install-recommends nginx libnginx-mod-stream"

COMMON = """
daemon off;
{user}
pid {home}/nginx.pid;
error_log stderr warn;
worker_processes auto;
worker_rlimit_nofile 16384;
{modules}
events {{ worker_connections 8192; }}
"""

HTTP = """
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    tcp_nodelay on;
    keepalive_timeout 1h;
    keepalive_requests 1000000000;
    client_max_body_size 0;
    client_body_temp_path {temp}/body;
    proxy_temp_path {home}/proxy;
    fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi;
    scgi_temp_path {home}/scgi;
    default_type application/octet-stream;
    {servers}
}}
"""

ORIGIN = """
    open_file_cache max=100;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        root {www};
        client_body_buffer_size 1m;
        location /upload/ {{ dav_methods PUT; }}
    }}
"""

HTTP_HOP = """
    upstream next {{
        server 127.0.0.1:{to};
        keepalive 512;
        keepalive_requests 1000000000;
        keepalive_timeout 1h;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://next;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_request_buffering off;
            proxy_max_temp_file_size 0;
            proxy_buffer_size 8k;
            proxy_buffers 16 64k;
            proxy_busy_buffers_size 128k;
        }}
    }}
"""

STREAM_HOP = """
stream {{
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        proxy_pass 127.0.0.1:{to};
        proxy_buffer_size 64k;
        proxy_timeout 1h;
        tcp_nodelay on;
    }}
}}
"""


class Nginx:
    """Starts nginx in the ways that the harness needs."""

    def __init__(self, work, tmpfs):
        self.work = work
        self.tmpfs = tmpfs
        self.program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
        if not self.program:
            raise Missing(f"nginx is not installed: {INSTALL}")

    def _start(self, name, blocks, modules=""):
        home = self.work / name
        home.mkdir()
        user = "user root;" if os.geteuid() == 0 else ""
        config = home / "nginx.conf"
        config.write_text(COMMON.format(user=user, home=home, modules=modules) + blocks.replace("{home}", str(home)))
        return Process(name, [self.program, "-p", home, "-e", "stderr", "-c", config], self.work)

    def _http(self, name, servers):
        http = HTTP.format(home="{home}", temp=self.tmpfs, servers=servers)
        return self._start(name, http)

    def origin(self, www):
        """The device's own server; what it serves and takes is in memory."""
        port = free_port()
        process = self._http("origin", ORIGIN.format(port=port, www=www))
        process.wait_port(port)
        return port, process

    def http_hops(self, origin):
        processes, to = [], origin
        for hop in (2, 1):
            port = free_port()
            process = self._http(f"nginx-http-{hop}", HTTP_HOP.format(port=port, to=to))
            process.wait_port(port)
            processes.append(process)
            to = port
        return Subject("nginx x2 (http)", Entry(to), processes)

    def stream_hops(self, origin):
        modules = self._stream_module()
        processes, to = [], origin
        for hop in (2, 1):
            port = free_port()
            process = self._start(f"nginx-stream-{hop}", STREAM_HOP.format(port=port, to=to), modules)
            process.wait_port(port)
            processes.append(process)
            to = port
        return Subject("nginx x2 (stream)", Entry(to), processes)

    def _stream_module(self):
        built = subprocess.run([self.program, "-V"], capture_output=True, text=True).stderr
        if re.search(r"--with-stream(\s|$)", built):
            return ""
        path = re.search(r"--modules-path=(\S+)", built)
        module = f"{path[1]}/ngx_stream_module.so" if path else ""
        if not os.path.exists(module):
            raise Missing(f"nginx has no stream module: {INSTALL}")
        return f"load_module {module};"
