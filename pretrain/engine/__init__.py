"""The engine room: the only one that imports DeepSpeed.

`world.start_world` starts the process group, `build.build_engine` picks the engine for a layout. DeepSpeed reads its
environment when it is imported, so nothing here imports it before `start_world` has run.
"""
