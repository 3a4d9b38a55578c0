# ConvexHttpClient of the PyPI package `convex` against the chat; the only argument is the deployment's URL.
import math
import sys

from convex import ConvexError, ConvexInt64
from convex.http_client import ConvexHttpClient
from convex.values import json_to_convex

client = ConvexHttpClient(sys.argv[1])


def failure(call):
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError("the call succeeded, which it must not")


# Queries, mutations, actions.
ada = client.mutation("users:create", {"name": "Ada"})
assert client.query("users:get", {"id": ada})["name"] == "Ada"
room = client.mutation("lib/rooms:create", {"title": "Lobby", "members": [ada]})
for i in range(7):
    client.mutation("messages:send", {"room": room, "author": ada, "body": f"message {i}"})
assert len(client.query("messages:list", {"room": room})) == 7
assert client.action("actions:tour", {"name": "python"}) == {"secret": "42", "value": 1.0, "doubled": 2.0}

# Pages.
bodies, cursor = [], None
for _ in range(10):
    page = client.query("messages:page", {"room": room, "paginationOpts": {"numItems": 3, "cursor": cursor}})
    bodies += [message["body"] for message in page["page"]]
    if page["isDone"]:
        break
    cursor = page["continueCursor"]
assert bodies == [f"message {i}" for i in range(7)], bodies

# Values.
typed = client.query("values:typed", {"count": ConvexInt64(2**62), "bytes": b"\x01\x02\xff", "ratio": -0.0})
assert typed["next"] == ConvexInt64(2**62 + 1), typed
assert typed["bytes"] == b"\xff\x02\x01", typed
assert typed["negativeZero"] is True
assert typed["ratio"] == 0 and math.copysign(1, typed["ratio"]) == -1
every = {
    "none": None,
    "yes": True,
    "float": 0.1,
    "least": ConvexInt64(-(2**63)),
    "text": "a\u0000\U0001f600",
    "bytes": b"",
    "list": [ConvexInt64(1), [], {}],
    "infinite": float("-inf"),
}
for kind, name in (("query", "values:echo"), ("action", "values:echoAction")):
    back = getattr(client, kind)(name, {"value": every})
    assert back == every, back
blob = client.mutation("values:store", {"bytes": b"abc", "count": ConvexInt64(-1), "ratio": -0.0, "extra": every})
loaded = client.query("values:load", {"id": blob})
assert loaded["extra"] == every and loaded["bytes"] == b"abc" and loaded["count"] == ConvexInt64(-1)
assert math.isnan(client.query("values:specials", {})["nan"])

# Errors.
error = failure(lambda: client.mutation("errors:withData", {"code": ConvexInt64(7)}))
assert isinstance(error, ConvexError), error
# This client leaves the data as it came.
data = json_to_convex(error.data)
assert data["code"] == ConvexInt64(7) and data["reason"] == "no seats left", data
error = failure(lambda: client.query("errors:text", {}))
assert isinstance(error, ConvexError) and error.data == "just text", error
error = failure(lambda: client.query("errors:plain", {"what": "x"}))
assert not isinstance(error, ConvexError) and "Uncaught Error: boom: x" in str(error), error
assert "ArgumentValidationError" in str(failure(lambda: client.query("users:get", {})))
for name in ("admin:secret", "users:none", "none:none"):
    assert f"Could not find public function for '{name}'." in str(failure(lambda: client.query(name, {})))

# Nested mutations.
nested = client.mutation("nested:catchInner", {"tag": "python"})
assert nested["names"] == ["python-before", "python-after"], nested

print("all is well")
