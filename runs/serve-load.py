#!/usr/bin/env python3
"""Loads `clasp serve`, attacks it, and kills it while its gallery is changed.

python runs/serve-load.py target/release/clasp --model RUN --images DIR [--hours 0.033]
python runs/serve-load.py target/release/clasp --model RUN --images DIR --hostile 10000
python runs/serve-load.py target/release/clasp --model RUN --images DIR --kills 100

Without --hostile and --kills it measures images a second of /v1/embed against `clasp embed` on the same
files (the processor time of this client taken off, as both share the machine; where other programs run
beside, the ratio by processor time is the fair one), p50 and p99 of the
requests, the growth of the server's memory, and compares every answer with the file of `clasp embed`.
Exits with 1 if an answer is lost or wrong, the server ends or panics, something from outside the gallery
is served, or an acknowledged change is lost. Prints JSON. RUN is a backbone. Needs Python 3.9 only.
"""

import argparse
import http.client
import json
import os
import random
import resource
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from pathlib import Path
from urllib.parse import quote

SECRET = b"canary-5f1e0c"
CRLF = b"\r\n"


class Server:
    """`clasp serve` on a free port."""

    def __init__(self, clasp, folder, *arguments):
        self.log = open(Path(folder) / "server.log", "ab")
        self.process = subprocess.Popen(
            [clasp, "serve", "--listen", "127.0.0.1:0", "--json", "--quiet", *arguments],
            stdout=subprocess.PIPE, stderr=self.log, text=True)
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the server did not start: {Path(self.log.name).read_text()}")
        text = line
        while not text.rstrip().endswith("}"):
            text += self.process.stdout.readline()
        self.port = int(json.loads(text)["url"].rsplit(":", 1)[1])
        while self.ask("GET", "/ready")[0] != 200:
            time.sleep(0.02)

    def ask(self, method, path, body=None, headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def metric(self, name):
        lines = self.ask("GET", "/metrics")[1].decode().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(name + " "))

    def processor_seconds(self):
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self, sent=signal.SIGTERM):
        self.process.send_signal(sent)
        return self.process.wait(timeout=120)

    def said(self):
        return Path(self.log.name).read_text(errors="replace")


def form(files):
    """Body and content type of a form with these names and bytes."""
    boundary = f"b{random.getrandbits(64):x}"
    parts = []
    for name, data in files:
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'
        parts.append(head.encode() + data + CRLF)
    return b"".join(parts) + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


def read_npy(path):
    """Keys and rows of a file of `clasp embed`."""
    data = path.read_bytes()
    start = 10 + struct.unpack("<H", data[8:10])[0]
    keys = Path(f"{path}.keys.txt").read_text().splitlines()
    values = struct.unpack(f"<{(len(data) - start) // 4}f", data[start:])
    width = len(values) // len(keys)
    return {key: values[i * width:(i + 1) * width] for i, key in enumerate(keys)}


def embed_rate(clasp, model, images, folder):
    """Images a second and a processor second of `clasp embed`, its start taken off, and its features."""
    seconds, processor = [], []
    for some in (images[:8], images):
        out = folder / f"features-{len(some)}.npy"
        listed = folder / "images.txt"
        listed.write_text("".join(f"{path.resolve()}\n" for path in some))
        began, used = time.monotonic(), processor_of_children()
        subprocess.run([clasp, "embed", str(listed), "--model", model, "--out", str(out), "--quiet"],
                       check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.monotonic() - began)
        processor.append(processor_of_children() - used)
    features = {key.rsplit("/", 1)[-1]: row for key, row in read_npy(out).items()}
    count = len(images) - 8
    return count / (seconds[1] - seconds[0]), count / (processor[1] - processor[0]), features


def processor_of_children():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


class Load(threading.Thread):
    """Sends requests one after the other until the time is over."""

    def __init__(self, server, bodies, features, until):
        super().__init__()
        self.server, self.bodies, self.features, self.until = server, bodies, features, until
        self.times, self.images, self.lost, self.wrong, self.busy = [], 0, 0, 0, 0

    def run(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=120)
        while time.monotonic() < self.until:
            names, body, kind = random.choice(self.bodies)
            began = time.monotonic()
            try:
                connection.request("POST", "/v1/embed", body, {"Content-Type": kind})
                response = connection.getresponse()
                text = response.read()
            except OSError:
                self.lost += 1
                connection.close()
                continue
            if response.status == 503:
                self.busy += 1
                time.sleep(0.05)
                continue
            self.times.append(time.monotonic() - began)
            self.images += len(names)
            self.check(names, response.status, text)
        connection.close()

    def check(self, names, status, text):
        lines = text.decode().splitlines()
        if status != 200 or len(lines) != len(names):
            self.wrong += 1
            return
        # One line of each answer: to parse all of them takes longer than to compute them.
        at = random.randrange(len(names))
        row = json.loads(lines[at])
        near = zip(row["feature"], self.features[row["key"]])
        self.wrong += row["key"] != names[at] or any(abs(a - b) > 1e-4 * max(1, abs(b)) for a, b in near)


def load(clasp, options, images, folder):
    before, cheap, features = embed_rate(clasp, options.model, images, folder)
    server = Server(clasp, folder, "--model", options.model)
    bodies = []
    for start in range(0, len(images) - options.batch + 1, options.batch):
        some = images[start:start + options.batch]
        body, kind = form([(path.name, path.read_bytes()) for path in some])
        bodies.append(([path.stem for path in some], body, kind))
    seconds = options.hours * 3600

    def burst(length):
        threads = [Load(server, bodies, features, time.monotonic() + length) for _ in range(options.clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return threads

    burst(min(10, seconds / 4))
    memory = server.metric("process_resident_memory_bytes")
    usage, began = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    processor = server.processor_seconds()
    threads = burst(seconds)
    wall = time.monotonic() - began
    after = resource.getrusage(resource.RUSAGE_SELF)
    own = (after.ru_utime + after.ru_stime - usage.ru_utime - usage.ru_stime) / options.cores
    count = sum(thread.images for thread in threads)
    processor = server.processor_seconds() - processor
    memory_after = server.metric("process_resident_memory_bytes")
    status = server.stop()
    # Before and after: other work on the machine changes the rate.
    after_rate, after_cheap, _ = embed_rate(clasp, options.model, images, folder)
    rate, cheap = (before + after_rate) / 2, (cheap + after_cheap) / 2
    times = sorted(took for thread in threads for took in thread.times)
    result = {
        "seconds": round(wall, 1),
        "requests": len(times),
        "images": count,
        "images_per_second": round(count / wall, 1),
        "images_per_second_without_client": round(count / (wall - own), 1),
        "clasp_embed_images_per_second": round(rate, 1),
        "ratio": round(count / (wall - own) / rate, 2),
        "images_per_processor_second": round(count / processor, 1),
        "clasp_embed_images_per_processor_second": round(cheap, 1),
        "ratio_by_processor_time": round(count / processor / cheap, 2),
        "p50_ms": round(1000 * times[len(times) // 2], 1),
        "p99_ms": round(1000 * times[len(times) * 99 // 100], 1),
        "busy": sum(thread.busy for thread in threads),
        "lost": sum(thread.lost for thread in threads),
        "wrong": sum(thread.wrong for thread in threads),
        "memory_mib": round(memory / 2**20, 1),
        "memory_growth_mib": round((memory_after - memory) / 2**20, 1),
        "exit_status": status,
    }
    return result, result["lost"] == result["wrong"] == 0 and result["exit_status"] == 143


def png(width, height, rows):
    """A PNG that claims a size and has so many rows of zeros."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    packer = zlib.compressobj(9)
    row = bytes(min(1 + 3 * width, 1 << 20))
    data = b"".join(packer.compress(row) for _ in range(rows)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def head(line, headers=(), length=None):
    lines = [line, "Host: localhost", *headers]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    return "\r\n".join(lines).encode("latin-1", "replace") + CRLF * 2


def post(path, body, kind="image/png", *headers):
    return head(f"POST {path} HTTP/1.1", [f"Content-Type: {kind}", *headers], len(body)) + body


def hostile_requests(images, secret):
    """Makers of hostile requests by name: bytes to send, and what is done after them."""
    bombs = [png(60_000, 60_000, 1), png(20_000, 6_000, 6_000), png(2**31 - 1, 2**31 - 1, 1), png(5_000, 5_000, 10)]
    name = secret.name
    ups = ["../" * n + name for n in range(1, 6)] + [str(secret), "..\\" + name, "file://" + str(secret)]
    random_bytes = random.randbytes if hasattr(random, "randbytes") else lambda n: bytes(random.getrandbits(8) for _ in range(n))

    def mutated():
        data = bytearray(random.choice(images).read_bytes())
        for _ in range(random.randrange(1, 30)):
            data[random.randrange(len(data))] = random.randrange(256)
        return bytes(data[:random.randrange(1, len(data) + 1)])

    def traversal():
        up = random.choice(ups)
        coded = random.choice([up, quote(up, safe=""), quote(quote(up, safe=""), safe=""), up.replace(".", "%2e")])
        path = random.choice(["/", "/assets/", "/v1/predict/", "/v1/gallery/image?key=", "/v1/labels/image?key=",
                              "/v1/runs/metrics?run=", "/v1/runs/experts?run=", "/v1/gallery?after=", "/v1/gallery?key="])
        method = random.choice(["GET", "GET", "POST", "DELETE", "PUT", "HEAD"])
        return head(f"{method} {path}{coded} HTTP/1.1", length=0)

    def wrong_length():
        body = random.choice(images).read_bytes()
        lengths = random.choice([
            [f"Content-Length: {len(body) + 9}"], [f"Content-Length: {len(body) // 2}"], ["Content-Length: -1"],
            ["Content-Length: 99999999999999999999"], ["Content-Length: 5", "Content-Length: 6"],
            ["Content-Length: 5", "Transfer-Encoding: chunked"], ["Transfer-Encoding: chunked", "X: y"],
            ["Content-Length: 1e3"], ["Content-Length: 2147483648"]])
        return head("POST /v1/embed HTTP/1.1", lengths) + body

    def chunks():
        size = random.choice([b"FFFFFFFFFFFFFFFF", b"-5", b"zz", b"10000000", b"5;" + b"x" * 20_000])
        return head("POST /v1/embed HTTP/1.1", ["Transfer-Encoding: chunked"]) + size + CRLF + b"hello" + CRLF

    def headers():
        many = random.choice([[f"X-{i}: y" for i in range(3000)], ["X: " + "y" * 200_000], ["X" * 100_000 + ": y"]])
        return head(random.choice(["GET / HTTP/1.1", "GET /" + "a" * 200_000 + " HTTP/1.1"]), many)

    def forms():
        kind = random.choice(["multipart/form-data", "multipart/form-data; boundary=b", "multipart/form-data; boundary=" + "b" * 5000])
        part = b'--b\r\nContent-Disposition: form-data; name="image"; filename="%s"\r\n\r\nx\r\n'
        names = [b"a.jpg", b"../../" + name.encode(), b"\x00\x01", b"a" * 10_000]
        body = random.choice([b"", b"--b", b"--b--", part % random.choice(names), (part % b"a.jpg") * 3000,
                              b"--b\r\n" + b"X: y\r\n" * 10_000, b'--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n'])
        return post(random.choice(["/v1/embed", "/v1/gallery"]), body, kind)

    def parameters():
        value = random.choice(["-1", "0", "1e99", "NaN", "inf", "99999999999999999999", "%00", "%ff", "a" * 3000, "=", ""])
        name = random.choice(["top", "threshold", "filter", "prompt", "count", "after", "key", "from", "sort", "x"])
        path = random.choice(["/v1/search", "/v1/embed", "/v1/gallery", "/v1/labels", "/v1/predict/reid"])
        return post(f"{path}?{name}={value}", random.choice(images).read_bytes(), "image/jpeg")

    def foreign():
        line = random.choice(["Origin: http://evil.example", "Origin: null", "Sec-Fetch-Site: cross-site", "Host: evil.example"])
        return post("/v1/gallery?key=foreign", random.choice(images).read_bytes(), "image/jpeg", line)

    def nested():
        body = random.choice([b"[" * 500_000, b'{"key":' * 100_000, b'{"key":"a","parts":[{"row":99999999999,"column":0,"class":"x"}]}', b"\xff"])
        return post("/v1/labels/image", body, "application/json")

    return {
        "bomb": lambda: post(random.choice(["/v1/embed", "/v1/search", "/v1/gallery?key=bomb"]), random.choice(bombs)),
        "mutated image": lambda: post("/v1/embed", mutated(), "image/jpeg"),
        "traversal": traversal,
        "wrong length": wrong_length,
        "chunks": chunks,
        "headers": headers,
        "form": forms,
        "parameters": parameters,
        "foreign page": foreign,
        "nested JSON": nested,
        "garbage": lambda: random_bytes(random.randrange(1, 3000)),
        "other protocol": lambda: random.choice([b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", b"GET /\r\n\r\n"]),
        "slow body": lambda: head("POST /v1/embed HTTP/1.1", ["Content-Type: image/png"], 100_000) + b"\x89PNG",
        "slow head": lambda: b"POST /v1/embed HTTP/1.1\r\nHost: localhost\r\nX: ",
        "leaves": lambda: post("/v1/embed", random.choice(images).read_bytes(), "image/jpeg"),
    }


def attack(server, name, data, faults, statuses):
    """Sends bytes and looks at the answer, if there is one."""
    try:
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
            try:
                connection.sendall(data)
                if name == "leaves":
                    return
                if name in ("slow body", "slow head"):
                    # The server has to end it.
                    connection.settimeout(60)
                elif name != "foreign page" and random.random() < 0.5:
                    # The server takes this for a client that left, and may close without an answer.
                    connection.shutdown(socket.SHUT_WR)
                answer = b""
                while len(answer) < 1 << 20 and (more := connection.recv(1 << 16)):
                    answer += more
                    if name not in ("slow body", "slow head") and b"\r\n\r\n" in answer and len(more) < 1 << 16:
                        break
            except socket.timeout:
                faults.append(f"{name}: no answer: {data[:200]!r}")
                return
            except OSError:
                # The server has closed the connection.
                return
    except OSError as error:
        faults.append(f"{name}: {error}")
        return
    status = answer[9:12].decode("latin-1") if answer.startswith(b"HTTP/1.") else "closed"
    statuses[status] = statuses.get(status, 0) + 1
    if SECRET in answer:
        faults.append(f"{name}: served a file from outside: {data[:200]!r}")
    if status == "500":
        faults.append(f"{name}: 500: {data[:200]!r}")
    if name == "foreign page" and status not in ("403", "421", "400"):
        faults.append(f"{name}: {status}")


def hostile(clasp, options, images, folder):
    gallery = folder / "gallery"
    gallery.mkdir()
    for path in images[:8]:
        (gallery / path.name).write_bytes(path.read_bytes())
    secret = folder / "secret.jpg"
    secret.write_bytes(SECRET)
    server = Server(clasp, folder, "--model", options.model, "--gallery", str(gallery), "--store", str(folder / "store"),
                    "--runs", str(gallery), "--max-seconds", "3", "--max-body", "4")
    memory = server.metric("process_resident_memory_bytes")
    makers = hostile_requests(images, secret)
    faults, statuses, counts = [], {}, dict.fromkeys(makers, 0)
    left = [options.hostile]
    lock = threading.Lock()

    def work():
        while True:
            with lock:
                if left[0] == 0 or server.process.poll() is not None:
                    return
                left[0] -= 1
                name = random.choice(list(makers))
                # Each of these takes the time of its limit.
                if name.startswith("slow") and random.random() < 0.9:
                    name = "garbage"
                counts[name] += 1
                data = makers[name]()
            attack(server, name, data, faults, statuses)

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alive = server.process.poll() is None
    good = alive and server.ask("POST", "/v1/embed", images[0].read_bytes(), {"Content-Type": "image/jpeg"})[0] == 200
    keys = json.loads(server.ask("GET", "/v1/gallery?count=1000")[1])["keys"] if good else []
    strange = [key for key in keys if key not in {path.stem for path in images[:8]} and len(key) > 255]
    result = {
        "requests": sum(counts.values()),
        "kinds": counts,
        "answers": dict(sorted(statuses.items())),
        "panics": server.said().count("panicked"),
        "answers_after": good,
        "memory_growth_mib": round((server.metric("process_resident_memory_bytes") - memory) / 2**20, 1) if alive else None,
        "exit_status": server.stop() if alive else server.process.returncode,
        "faults": faults[:20],
    }
    return result, good and not faults and not strange and result["panics"] == 0 and result["exit_status"] == 143


def kills(clasp, options, images, folder):
    """Kills the server while images are added and removed; what was acknowledged has to be there."""
    store = folder / "store"
    arguments = ["--model", options.model, "--store", str(store)]
    here, gone, unsure = {}, set(), set()
    faults, acknowledged, cut = [], 0, 0
    lock = threading.Lock()
    for kill in range(options.kills + 1):
        server = Server(clasp, folder, *arguments)
        keys, after = [], ""
        while True:
            page = json.loads(server.ask("GET", f"/v1/gallery?count=1000{after}")[1])
            keys += page["keys"]
            if page["next"] is None:
                break
            after = "&after=" + quote(page["next"], safe="")
        faults += [f"kill {kill}: lost {key}" for key in set(here) - set(keys) - unsure]
        faults += [f"kill {kill}: came back: {key}" for key in gone & set(keys) - unsure]
        for key in random.sample(sorted(set(here) & set(keys)), min(5, len(set(here) & set(keys)))):
            if server.ask("GET", "/v1/gallery/image?key=" + quote(key, safe=""))[1] != here[key]:
                faults.append(f"kill {kill}: other bytes of {key}")
        # What was not acknowledged may be either way, and is settled now.
        for key in unsure:
            if key not in keys:
                here.pop(key, None)
                gone.discard(key)
            elif key in gone:
                gone.discard(key)
        unsure.clear()
        if kill == options.kills:
            status = server.stop()
            break
        stopping = threading.Event()

        def change(worker):
            nonlocal acknowledged
            for count in range(10**6):
                if stopping.is_set():
                    return
                key, data = f"{kill}/{worker}/{count}", random.choice(images).read_bytes()
                with lock:
                    unsure.add(key)
                    here[key] = data
                try:
                    added = server.ask("POST", f"/v1/gallery?key={quote(key, safe='')}", data, {"Content-Type": "image/jpeg"})[0]
                    with lock:
                        if added == 201:
                            unsure.discard(key)
                            acknowledged += 1
                    if added == 201 and random.random() < 0.3:
                        with lock:
                            unsure.add(key)
                        if server.ask("DELETE", f"/v1/gallery?key={quote(key, safe='')}")[0] == 204:
                            with lock:
                                unsure.discard(key)
                                here.pop(key)
                                gone.add(key)
                                acknowledged += 1
                except OSError:
                    return

        workers = [threading.Thread(target=change, args=(worker,)) for worker in range(3)]
        for worker in workers:
            worker.start()
        time.sleep(random.uniform(0.05, 0.6))
        server.process.kill()
        stopping.set()
        for worker in workers:
            worker.join()
        server.process.wait()
    cut = server.said().count("unfinished record")
    result = {"kills": options.kills, "acknowledged": acknowledged, "unfinished_records_cut": cut,
              "images_at_the_end": len(keys), "exit_status": status, "faults": faults[:20]}
    return result, not faults and acknowledged > options.kills and status == 143


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clasp")
    parser.add_argument("--model", required=True)
    parser.add_argument("--images", required=True)
    parser.add_argument("--hours", type=float, default=120 / 3600)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8, help="images of a request")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--hostile", type=int, default=0, metavar="N")
    parser.add_argument("--kills", type=int, default=0, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random.seed(options.seed)
    images = sorted(path for path in Path(options.images).rglob("*.jpg"))
    if len(images) < 16:
        raise SystemExit(f"--images: expected 16 JPEG files or more, found {len(images)}")
    work = hostile if options.hostile else kills if options.kills else load
    with tempfile.TemporaryDirectory() as folder:
        result, good = work(options.clasp, options, images, Path(folder))
    print(json.dumps(result, indent=2))
    sys.exit(not good)


if __name__ == "__main__":
    main()
