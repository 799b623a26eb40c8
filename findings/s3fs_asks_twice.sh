#!/usr/bin/env bash
# s3fs 2026.9.0: `cat_file` of a whole object asks for its size first (HEAD), however small it is, since it might be read
# in parts at a time (`max_concurrency` is 10). With a range, even one that is longer than the object, it does not.
#
# Seen: of ten objects of 4 bytes 10 HEAD and 10 GET with `cat_file(path)`, through `cat` as well; 0 HEAD and 10 GET with
# `cat_file(path, start=0, end=5)`, or `max_concurrency=1`. Who reads a folder of a million images pays, and waits for, a
# million requests for nothing. To avoid it, give a range from what the listing says.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "s3fs==2026.9.0" "fsspec==2026.9.0" "aiobotocore==3.10.0" "moto[server]==5.2.5"
cat >"$folder/asks.py" <<'PYTHON'
import collections
import logging

import s3fs
from moto.server import ThreadedMotoServer

logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
address, port = server.get_host_and_port()
store = s3fs.S3FileSystem(
    key="key",
    secret="secret",
    client_kwargs={"endpoint_url": f"http://{address}:{port}", "region_name": "us-east-1"},
    use_listings_cache=False,
)
store.call_s3("create_bucket", Bucket="bucket")
paths = [f"bucket/{number}.txt" for number in range(10)]
for path in paths:
    store.pipe_file(path, b"text")
asked = collections.Counter()
call = store._call_s3


async def counted(method, *arguments, **options):
    asked[method] += 1
    return await call(method, *arguments, **options)


store._call_s3 = counted


def requests(read):
    asked.clear()
    assert read() == [b"text"] * 10
    return asked["head_object"], asked["get_object"]


found = {
    "cat_file": requests(lambda: [store.cat_file(path) for path in paths]),
    "cat": requests(lambda: list(store.cat(paths).values())),
    "a range": requests(lambda: [store.cat_file(path, start=0, end=5) for path in paths]),
    "max_concurrency=1": requests(lambda: [store.cat_file(path, max_concurrency=1) for path in paths]),
}
print("HEAD and GET:", found)
server.stop()
if found != {"cat_file": (10, 10), "cat": (10, 10), "a range": (0, 10), "max_concurrency=1": (0, 10)}:
    raise SystemExit("changed: expected a HEAD for each GET of a whole object, and none with a range")
PYTHON
"$folder/venv/bin/python" "$folder/asks.py"
