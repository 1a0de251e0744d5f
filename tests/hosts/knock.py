"""What a stranger on the network gets from each port of a cluster: run on a host that has no token.

    python knock.py ADDRESS PORT… -> {"PORT": what it gave away, or ""}

Every port is asked over HTTP for its front page, its figures and its jobs, and over gRPC for calls of all services of
Ray that listen anywhere. Anything but a refusal counts as given away.
"""

import http.client
import json
import sys

import grpc  # type: ignore[import-untyped]  # has no types of its own

PAGES = ("/", "/metrics", "/api/jobs/", "/api/version", "/nodes?view=summary")

CALLS = (
    "InternalKVGcsService/InternalKVKeys",
    "NodeInfoGcsService/GetAllNodeInfo",
    "JobInfoGcsService/GetAllJobInfo",
    "ActorInfoGcsService/GetAllActorInfo",
    "NodeManagerService/RequestWorkerLease",
    "NodeManagerService/GetNodeStats",
    "ObjectManagerService/Push",
    "CoreWorkerService/PushTask",
    "CoreWorkerService/Exit",
    "CoreWorkerService/KillActor",
    "RayletDriver/Init",
    "RayletDriver/ClusterInfo",
    "RayletDriver/Schedule",
    "ReporterService/GetTraceback",
    "LogService/ListLogs",
)

TIMEOUT_SEC = 20
REFUSED = (401, 403, 404, 405)


def pages(address: str, port: int) -> list[str]:
    given = []
    for page in PAGES:
        connection = http.client.HTTPConnection(address, port, timeout=TIMEOUT_SEC)
        try:
            connection.request("GET", page)
            answer = connection.getresponse()
            if answer.status not in REFUSED:
                given.append(f"HTTP {answer.status} {page}: {answer.read(60)!r}")
        except (OSError, http.client.HTTPException):
            return given  # speaks no HTTP, or not to us
        finally:
            connection.close()
    return given


def calls(address: str, port: int) -> list[str]:
    given = []
    with grpc.insecure_channel(f"{address}:{port}") as channel:
        for call in CALLS:
            ask = channel.unary_unary(f"/ray.rpc.{call}", request_serializer=bytes, response_deserializer=bytes)
            try:
                ask(b"", timeout=TIMEOUT_SEC)
                given.append(f"gRPC {call}: answered")
            except grpc.RpcError as error:
                if error.code() == grpc.StatusCode.UNAVAILABLE:
                    return given  # speaks no gRPC
                if error.code() not in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED):
                    given.append(f"gRPC {call}: {error.code().name}")
    return given


if __name__ == "__main__":
    to, *ports = sys.argv[1:]
    print(json.dumps({port: "; ".join(pages(to, int(port)) + calls(to, int(port))) for port in ports}))
