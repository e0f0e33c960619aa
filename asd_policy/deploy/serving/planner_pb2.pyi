from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class OpenRequest(_message.Message):
    __slots__ = ("package",)
    PACKAGE_FIELD_NUMBER: _ClassVar[int]
    package: str
    def __init__(self, package: _Optional[str] = ...) -> None: ...

class OpenReply(_message.Message):
    __slots__ = ("session", "lease", "policy", "package")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    PACKAGE_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    lease: float
    policy: PolicyIdentity
    package: str
    def __init__(self, session: _Optional[bytes] = ..., lease: _Optional[float] = ..., policy: _Optional[_Union[PolicyIdentity, _Mapping]] = ..., package: _Optional[str] = ...) -> None: ...

class PolicyIdentity(_message.Message):
    __slots__ = ("observation", "action_dim", "n_obs_steps", "horizon", "n_action_steps", "first_action", "sampler", "backend", "exact")
    OBSERVATION_FIELD_NUMBER: _ClassVar[int]
    ACTION_DIM_FIELD_NUMBER: _ClassVar[int]
    N_OBS_STEPS_FIELD_NUMBER: _ClassVar[int]
    HORIZON_FIELD_NUMBER: _ClassVar[int]
    N_ACTION_STEPS_FIELD_NUMBER: _ClassVar[int]
    FIRST_ACTION_FIELD_NUMBER: _ClassVar[int]
    SAMPLER_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    EXACT_FIELD_NUMBER: _ClassVar[int]
    observation: _containers.RepeatedCompositeFieldContainer[Feature]
    action_dim: int
    n_obs_steps: int
    horizon: int
    n_action_steps: int
    first_action: int
    sampler: str
    backend: str
    exact: bool
    def __init__(self, observation: _Optional[_Iterable[_Union[Feature, _Mapping]]] = ..., action_dim: _Optional[int] = ..., n_obs_steps: _Optional[int] = ..., horizon: _Optional[int] = ..., n_action_steps: _Optional[int] = ..., first_action: _Optional[int] = ..., sampler: _Optional[str] = ..., backend: _Optional[str] = ..., exact: _Optional[bool] = ...) -> None: ...

class Feature(_message.Message):
    __slots__ = ("name", "dim", "shape")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIM_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    dim: int
    shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., dim: _Optional[int] = ..., shape: _Optional[_Iterable[int]] = ...) -> None: ...

class Array(_message.Message):
    __slots__ = ("shape", "data")
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class Frames(_message.Message):
    __slots__ = ("index", "data", "floats", "compressed")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    FLOATS_FIELD_NUMBER: _ClassVar[int]
    COMPRESSED_FIELD_NUMBER: _ClassVar[int]
    index: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    floats: bool
    compressed: bool
    def __init__(self, index: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ..., floats: _Optional[bool] = ..., compressed: _Optional[bool] = ...) -> None: ...

class PlanRequest(_message.Message):
    __slots__ = ("session", "history", "step", "begins", "seed", "committed", "frames")
    class HistoryEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Array
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Array, _Mapping]] = ...) -> None: ...
    class FramesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Frames
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Frames, _Mapping]] = ...) -> None: ...
    SESSION_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    BEGINS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    history: _containers.MessageMap[str, Array]
    step: int
    begins: bool
    seed: int
    committed: Committed
    frames: _containers.MessageMap[str, Frames]
    def __init__(self, session: _Optional[bytes] = ..., history: _Optional[_Mapping[str, Array]] = ..., step: _Optional[int] = ..., begins: _Optional[bool] = ..., seed: _Optional[int] = ..., committed: _Optional[_Union[Committed, _Mapping]] = ..., frames: _Optional[_Mapping[str, Frames]] = ...) -> None: ...

class Committed(_message.Message):
    __slots__ = ("actions", "delay", "soft")
    ACTIONS_FIELD_NUMBER: _ClassVar[int]
    DELAY_FIELD_NUMBER: _ClassVar[int]
    SOFT_FIELD_NUMBER: _ClassVar[int]
    actions: Array
    delay: int
    soft: bool
    def __init__(self, actions: _Optional[_Union[Array, _Mapping]] = ..., delay: _Optional[int] = ..., soft: _Optional[bool] = ...) -> None: ...

class PlanReply(_message.Message):
    __slots__ = ("actions", "rounds", "nfe", "batch", "waited", "planned", "sampler", "cut", "exact", "window")
    ACTIONS_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    NFE_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    WAITED_FIELD_NUMBER: _ClassVar[int]
    PLANNED_FIELD_NUMBER: _ClassVar[int]
    SAMPLER_FIELD_NUMBER: _ClassVar[int]
    CUT_FIELD_NUMBER: _ClassVar[int]
    EXACT_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    actions: Array
    rounds: int
    nfe: int
    batch: int
    waited: float
    planned: float
    sampler: str
    cut: bool
    exact: bool
    window: int
    def __init__(self, actions: _Optional[_Union[Array, _Mapping]] = ..., rounds: _Optional[int] = ..., nfe: _Optional[int] = ..., batch: _Optional[int] = ..., waited: _Optional[float] = ..., planned: _Optional[float] = ..., sampler: _Optional[str] = ..., cut: _Optional[bool] = ..., exact: _Optional[bool] = ..., window: _Optional[int] = ...) -> None: ...

class CloseRequest(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    def __init__(self, session: _Optional[bytes] = ...) -> None: ...

class CloseReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
