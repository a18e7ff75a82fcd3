"""The engine in one process, and HTTP in others, so that none waits for another's interpreter.

```
 clients ──▶ one port ──▶ HTTP processes                        engine's process
                          parse, tokenize      requests, aborts
                          RemoteEngine   ───────────────────▶  Host ─▶ EngineLoop ─▶ Engine.step
                          detokenize, JSON ◀───────────────────
                                               one message per step
```

The engine's process is the one that was started. It starts the others, restarts one that dies, and
ends them. Each is joined to it by a socket pair; ``messages`` defines what is sent over it.
"""
