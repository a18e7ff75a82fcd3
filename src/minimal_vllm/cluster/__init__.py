"""Several engines behind one server, on Ray Serve.

```
 clients ──▶ Ray's proxy ──▶ Ingress                          replicas, each with an engine
                             the routes of our server
                             ClusterEngine ── ClusterRouter ──▶ EngineReplica ─▶ EngineLoop
                                             asks ``routing``   EngineReplica ─▶ EngineLoop
```

Read in this order: ``config``, ``evictions`` (what routers are told), ``replica``,
``router``, ``engine``, ``ingress``, ``app`` (puts all together), ``serve``. Only ``config``,
``evictions`` and ``labels`` import no Ray.
"""
