"""What TensorFlow Serving answers to requests, good and bad, according to its source.

Every row says where the answer comes from: a file below `tensorflow_serving/` and a function, or,
with the library's name before it, of TensorFlow (tf), RapidJSON 1.1 or libevent 2.1. The rows were
written from revision 9d981c5c of github.com/tensorflow/serving.

The models are those of `serving/standin/conftest.py`: `half_plus_two` (y = x/2 + 2, version 123),
`shop` (two tasks, versions 1 and 2, the label "stable" at 1) and `typed` (signatures with other
types).
"""

import dataclasses
import gzip
import json
from typing import Any

import numpy as np

HALF = "half_plus_two"
PREDICT = f"/v1/models/{HALF}:predict"
TYPED = "/v1/models/typed:predict"

_CORE = "model_servers/server_core.cc"
_EVENTS = "util/net_http/server/internal/evhttp_request.cc"
_HANDLER = "model_servers/http_rest_api_handler.cc"
_JSON = "util/json_tensor.cc"
_MANAGER = "core/basic_manager.cc ServingMap::GetUntypedServableHandle"
_PARSE = "RapidJSON reader.h"
_PATH = "model_servers/http_rest_api_util.cc ParseModelInfo"
_PREDICT = "servables/tensorflow/predict_util.cc"
_ROWS = f"{_JSON} FillTensorMapFromInstancesList"
_STATUS = "model_servers/get_model_status_impl.cc GetModelStatusWithModelSpec"
_TENSOR = f"{_JSON} FillTensorProto"

# Listed among the signatures of a version; it takes nothing and returns nothing.
_INIT = "__saved_model_init_op"


@dataclasses.dataclass(frozen=True)
class Part:
    """A text that the message contains: what is around it names nodes of the graph."""

    text: str


@dataclasses.dataclass(frozen=True)
class Rest:
    """A request over REST, and its answer.

    `answer` is the JSON of a good answer; `error` the message of a refused one, and "" an empty
    body. `body` is text, bytes, or a function that makes one.
    """

    name: str
    body: Any
    source: str
    answer: Any = None
    error: str | Part | None = None
    status: int = 200
    method: str = "POST"
    path: str = PREDICT
    headers: tuple[tuple[str, str], ...] = ()
    slow: bool = False


def _bad(name: str, body: Any, error: str | Part, source: str, status: int = 400, **more) -> Rest:
    return Rest(name, body, source, error=error, status=status, **more)


def _numbers(size: int) -> str:
    """A batch of about `size` bytes of JSON."""
    numbers = ", ".join(["1.250000000000000000"] * (size // 22))
    return f'{{"instances": [{numbers}]}}'


_ELEMENT = "Failed to process element: {} of 'instances' list. Error: INVALID_ARGUMENT: {}"
_KEY = "Failed to process element: {} key: {} of 'instances' list. Error: INVALID_ARGUMENT: {}"
_ONE = '{"instances": [2.0]}'
_GZIPPED = gzip.compress(_ONE.encode(), mtime=0)
_ONE_ANSWER = {"predictions": [3.0]}


def _typed(signature: str, **document: Any) -> str:
    return json.dumps({"signature_name": signature, **document})


REST = [
    # Good requests.
    Rest("rows", '{"instances": [1, 2, 5]}', _ROWS, {"predictions": [2.5, 3.0, 4.5]}),
    Rest("columns", '{"inputs": [1, 2, 5]}', _JSON, {"outputs": [2.5, 3.0, 4.5]}),
    Rest("named rows", '{"instances": [{"x": 2}]}', _ROWS, _ONE_ANSWER),
    Rest("by version", _ONE, _CORE, _ONE_ANSWER, path=f"/v1/models/{HALF}/versions/123:predict"),
    Rest(
        "by label",
        '{"signature_name": "pets", "inputs": [[0, 9]]}',
        f"{_CORE} GetModelVersionForLabel",
        {"outputs": {"class": [1], "label": ["dog"], "probabilities": [[0.0001234, 0.9998766]]}},
        path="/v1/models/shop/labels/stable:predict",
    ),
    Rest("path in capitals", _ONE, _PATH, _ONE_ANSWER, path=f"/V1/Models/{HALF}:predict"),
    Rest("text after the object", f"{_ONE} and so on", f"{_JSON} ParseJson", _ONE_ANSWER),
    Rest("member given twice", '{"instances": [2.0], "instances": [9]}', "RapidJSON", _ONE_ANSWER),
    Rest(
        "input given twice in a row",
        '{"instances": [{"x": 2, "x": 4}, {"x": 9}]}',
        "tf core/framework/tensor.cc FromProtoField",
        {"predictions": [3.0, 4.0]},
    ),
    Rest(
        "input given twice, columns", '{"inputs": {"x": [2], "x": [4]}}', _JSON, {"outputs": [3.0]}
    ),
    Rest("byte order mark", "\ufeff" + _ONE, "RapidJSON encodedstream.h", _ONE_ANSWER),
    Rest(
        "half a byte order mark", b"\xbb" + _ONE.encode(), "RapidJSON encodedstream.h", _ONE_ANSWER
    ),
    Rest("no batch axis", '{"inputs": 2}', _JSON, {"outputs": 3.0}),
    Rest("5 MB", lambda: _numbers(5 * 10**6), _JSON, path=PREDICT),
    Rest("50 MB", lambda: _numbers(50 * 10**6), _JSON, slow=True),
    # Models, versions, labels and signatures that are not there.
    _bad(
        "missing model",
        _ONE,
        "Servable not found for request: Latest(nobody)",
        _MANAGER,
        404,
        path="/v1/models/nobody:predict",
    ),
    _bad(
        "missing version",
        _ONE,
        f"Servable not found for request: Specific({HALF}, 9)",
        _MANAGER,
        404,
        path=f"/v1/models/{HALF}/versions/9:predict",
    ),
    _bad(
        "version beyond 64 bits",
        _ONE,
        "",  # the handler returns before MakeJsonFromStatus
        _PATH,
        path=f"/v1/models/{HALF}/versions/9223372036854775808:predict",
    ),
    _bad(
        "missing label",
        _ONE,
        "Unrecognized servable version label: canary",
        f"{_CORE} GetModelVersionForLabel",
        path="/v1/models/shop/labels/canary:predict",
    ),
    _bad(
        "missing signature",
        '{"signature_name": "z", "instances": [1]}',
        'Serving signature name: "z" not found in signature def',
        f"{_HANDLER} GetInfoMap",
    ),
    _bad(
        "signature without inputs",
        json.dumps({"signature_name": _INIT, "instances": [1]}),
        f"Failed to get input map for signature: {_INIT}",
        f"{_JSON} FillPredictRequestFromJson",
    ),
    _bad(
        "signature that is no string",
        '{"signature_name": 1, "instances": [1]}',
        'JSON Value: {\n    "signature_name": 1,\n    "instances": [1]\n} not formatted '
        "correctly. 'signature_name' key must be a string value.",
        f"{_JSON} FormatSignatureError",
    ),
    _bad(
        "signature named twice",
        '{"signature_name": 1, "signature_name": 2}',
        'JSON Value: {\n    "signature_name": 1,\n    "signature_name": 2\n} not formatted '
        "correctly. 'signature_name' key must be a string value.",
        f"{_JSON} FormatSignatureError",
    ),
    _bad(
        "signature that is no UTF-8",
        b'{"signature_name": "\xff", "instances": [1]}',
        'Serving signature name: "\udcff" not found in signature def',
        f"{_HANDLER} GetInfoMap",
    ),
    _bad(
        "missing model and missing keys",
        "{}",
        "Servable not found for request: Latest(nobody)",
        f"{_JSON} FillPredictRequestFromJson",
        404,
        path="/v1/models/nobody:predict",
    ),
    # Inputs.
    _bad(
        "missing input, columns",
        _typed("ints", inputs={"i32": [1]}),
        "Missing named input: u8 in 'inputs' object.",
        f"{_JSON} FillTensorMapFromInputsMap",
        path=TYPED,
    ),
    _bad(
        "missing input, rows",
        _typed("ints", instances=[{"i32": 1}]),
        "Failed to process element: 0 of 'instances' list. JSON object: "
        '{\n    "i32": 1\n} keys must be equal to: i32,u8',
        _ROWS,
        path=TYPED,
    ),
    Rest("extra input, columns", '{"inputs": {"x": [2], "z": [1]}}', _JSON, {"outputs": [3.0]}),
    _bad(
        "extra input, rows",
        '{"instances": [{"x": 1, "z": 2}]}',
        _KEY.format(0, "z", "JSON object: does not have named input: z"),
        f"{_JSON} AddInstanceItem",
    ),
    _bad(
        "list for several inputs, rows",
        _typed("ints", instances=[1]),
        "instances is a plain list, but expecting list of objects as multiple input tensors "
        "required as per tensorinfo_map",
        _ROWS,
        path=TYPED,
    ),
    _bad(
        "input given twice, of several shapes",
        '{"instances": [{"x": [1, 2], "x": [3]}]}',
        _KEY.format(0, "x", "Expecting tensor size: 2 but got: 1"),
        f"{_JSON} AddInstanceItem",
    ),
    _bad(
        "base64 for several inputs, rows",  # for which one, the order of a hash table says
        _typed("ints", instances=[{"b64": "YQ=="}]),
        Part('JSON Value: {\n    "b64": "YQ=="\n} Type: Object is not of expected type: '),
        _ROWS,
        path=TYPED,
    ),
    _bad(
        "list for several inputs, columns",
        _typed("ints", inputs=[1]),
        "inputs is a plain value/list, but expecting an object as multiple input tensors "
        "required as per tensorinfo_map",
        f"{_JSON} FillTensorMapFromInputsMap",
        path=TYPED,
    ),
    _bad(
        "value among objects",
        '{"instances": [{"x": 1}, 2]}',
        "Expecting object but got list at item 1 of input list",
        _ROWS,
    ),
    _bad(
        "object among values",
        '{"instances": [1, {"x": 2}]}',
        "Expecting value/list but got object at item 1 of input list",
        _ROWS,
    ),
    # Types.
    *(
        _bad(
            f"{kind} for a float",
            f'{{"inputs": [{value}]}}',
            f"JSON Value: {value} Type: {kind} is not of expected type: float",
            f"{_JSON} TypeError",
        )
        for kind, value in [
            ("String", '"1"'),
            ("True", "true"),
            ("False", "false"),
            ("Null", "null"),
        ]
    ),
    _bad(
        "object for a float",
        '{"inputs": [{"a": 1}]}',
        'JSON Value: {\n    "a": 1\n} Type: Object is not of expected type: float',
        f"{_JSON} TypeError",
    ),
    _bad(
        "wrong type in a row",
        '{"instances": [1, "a"]}',
        _ELEMENT.format(1, 'JSON Value: "a" Type: String is not of expected type: float'),
        _ROWS,
    ),
    *(
        _bad(
            f"{value} for an int32",
            _typed("ints", inputs={"i32": [json.loads(value)], "u8": [1]}),
            f"JSON Value: {value} Type: Number is not of expected type: int32",
            f"{_JSON} AddValueToTensor",
            path=TYPED,
        )
        for value in ("1.5", "2147483648", "1.0")
    ),
    Rest(
        "uint8 loses its upper bits",
        _typed("ints", inputs={"i32": [1], "u8": [300]}),
        "tf core/framework/tensor.cc FromProtoField",
        {"outputs": [45]},
        path=TYPED,
    ),
    _bad(
        "output that JSON does not have",
        _typed("half", inputs=[1]),
        "Failed to write JSON value for tensor type: half",
        f"{_JSON} AddSingleValueAndAdvance",
        path=TYPED,
    ),
    # Shapes.
    _bad(
        "wrong shape",
        '{"instances": [[1, 2, 3]]}',
        Part("[1,3] is not compatible with expected shape [?,2]"),
        "tf core/kernels/ensure_shape_op.cc",
        path="/v1/models/shop:predict",
    ),
    _bad(
        "wrong rank",
        '{"instances": [1, 2]}',
        Part("[2] is not compatible with expected shape [?,2]"),
        "tf core/kernels/ensure_shape_op.cc",
        path="/v1/models/shop:predict",
    ),
    _bad(
        "rows of several sizes",
        '{"instances": [[1, 2], [1]]}',
        _ELEMENT.format(1, "Expecting tensor size: 2 but got: 1"),
        f"{_JSON} AddInstanceItem",
    ),
    _bad(
        "rows of several shapes",
        '{"instances": [[1, 2], [[1], [2]]]}',
        _ELEMENT.format(1, "Expecting shape [2] but got: [2,1]"),
        f"{_JSON} AddInstanceItem",
    ),
    _bad(
        "ragged columns",
        '{"inputs": [[1, 2], [3]]}',
        "Encountered list at unexpected size: 1 at level: 1 expected size: 2",
        _TENSOR,
    ),
    _bad(
        "value among lists",
        '{"inputs": [[1, 2], 3]}',
        "JSON Value: 3 found at incorrect level: 2 in the JSON DOM. Expected at level: 2",
        _TENSOR,
    ),
    _bad(
        "list among values",
        '{"inputs": [1, [2]]}',
        "Encountered list at unexpected level: 1 expected < 1",
        _TENSOR,
    ),
    # Batches without an example.
    _bad(
        "empty batch, rows",
        '{"instances": []}',
        "JSON Value: {\n    \"instances\": []\n} No values in 'instances' array",
        f"{_JSON} FillPredictRequestFromJson",
    ),
    Rest("empty batch, columns", '{"inputs": []}', _JSON, {"outputs": []}),
    _bad(
        "batch that is no list",
        '{"instances": 1}',
        "JSON Value: {\n    \"instances\": 1\n} Expecting 'instances' to be an list/array",
        f"{_JSON} FillPredictRequestFromJson",
    ),
    _bad(
        "neither rows nor columns",
        "{}",
        "Missing 'inputs' or 'instances' key",
        f"{_JSON} FillPredictRequestFromJson",
    ),
    _bad(
        "rows and columns",
        '{"inputs": 1, "instances": [1]}',
        'JSON Value: {\n    "inputs": 1,\n    "instances": [1]\n} Not formatted correctly '
        "expecting only one of 'inputs' or 'instances' keys to exist ",
        f"{_JSON} FillPredictRequestFromJson",
    ),
    # Numbers without a value, and too large ones.
    Rest("NaN", '{"instances": [NaN, 2]}', f"{_JSON} WriteDecimal", '{"predictions": [NaN, 3.0]}'),
    Rest(
        "Infinity",
        '{"instances": [Infinity, -Infinity, Inf]}',
        f"{_JSON} WriteDecimal",
        '{"predictions": [Infinity, -Infinity, Infinity]}',
    ),
    Rest("beyond float32", '{"inputs": 1e39}', f"{_JSON} WriteDecimal", '{"outputs": Infinity}'),
    _bad(
        "beyond float64",
        '{"inputs": 1e400}',
        "JSON Parse error: Number too big to be stored in double. at offset: 11",
        _PARSE,
    ),
    _bad(
        "zero with an exponent beyond float64",
        '{"inputs": 0e400}',
        "JSON Parse error: Number too big to be stored in double. at offset: 11",
        _PARSE,
    ),
    Rest(
        "beyond float64 by its digits",
        '{"inputs": 1000000e303}',
        f"{_PARSE} ParseNumber, which compares the exponent alone",
        '{"outputs": Infinity}',
    ),
    Rest("small with a large exponent", '{"inputs": 0.0001e309}', _PARSE, '{"outputs": Infinity}'),
    # JSON.
    _bad("no body", "", "JSON Parse error: The document is empty", f"{_JSON} ParseJson"),
    _bad("a list", "[1]", "JSON Value: [1] Is not object", f"{_JSON} ParseJson"),
    *(
        _bad(f"broken JSON: {body[:40]}", body, f"JSON Parse error: {message}", _PARSE)
        for body, message in [
            ("   ", "The document is empty. at offset: 3"),
            ('{"inputs": [1', "Missing a comma or ']' after an array element. at offset: 13"),
            ('{"inputs": [1}', "Missing a comma or ']' after an array element. at offset: 13"),
            ('{"inputs": [1] "a"}', "Missing a comma or '}' after an object member. at offset: 15"),
            ('{"inputs": [1,]}', "Invalid value. at offset: 14"),
            ('{"inputs": [1],}', "Missing a name for object member. at offset: 15"),
            ('{"inputs" [1]}', "Missing a colon after a name of object member. at offset: 10"),
            ('{"inputs": [nul]}', "Invalid value. at offset: 15"),
            ('{"inputs": [1.]}', "Miss fraction part in number. at offset: 14"),
            ('{"inputs": [1e]}', "Miss exponent in number. at offset: 14"),
            ('{"inputs', "Missing a closing quotation mark in string. at offset: 8"),
            (r'{"inputs": "\q"}', "Invalid escape character in string. at offset: 12"),
            (
                r'{"inputs": "\u00g0"}',
                "Incorrect hex digit after \\u escape in string. at offset: 12",
            ),
            (
                r'{"inputs": "\ud800"}',
                "The surrogate pair in string is invalid. at offset: 12",
            ),
            ('{"inputs": [1e, 1e400]}', "Miss exponent in number. at offset: 14"),
            (
                '{"inputs": [[] 1e]}',
                "Missing a comma or ']' after an array element. at offset: 15",
            ),
            (
                r'{"inputs": "\u00g0", "x": "\ud800"}',
                "Incorrect hex digit after \\u escape in string. at offset: 12",
            ),
            (
                r'{"inputs": "\ud800\u00g0"}',
                "Incorrect hex digit after \\u escape in string. at offset: 12",
            ),
            ('{"inputs": [Infi]}', "Invalid value. at offset: 16"),
            ('{"inputs": [-a]}', "Invalid value. at offset: 13"),
            ('{"inputs": [.5]}', "Invalid value. at offset: 12"),
            ('{"inputs": [+1]}', "Invalid value. at offset: 12"),
            ('{"inputs": [01]}', "Missing a comma or ']' after an array element. at offset: 13"),
            ("{1: 2}", "Missing a name for object member. at offset: 1"),
            ("]", "The document is empty. at offset: 0"),
            ("inputs", "Invalid value. at offset: 0"),
            ("[" * 5000, "Invalid value. at offset: 5000"),
            ('{"é": 1 2}', "Missing a comma or '}' after an object member. at offset: 9"),
        ]
    ),
    # Compressed bodies.
    *(
        Rest(
            f"Content-Encoding: {coding}",
            _GZIPPED,
            f"{_EVENTS} NeedUncompressGzipContent",
            _ONE_ANSWER,
            headers=(("Content-Encoding", coding),),
        )
        for coding in ("gzip", "x-gzip", "deflate, gzip")
    ),
    *(
        _bad(
            f"broken gzip: {name}",
            body,
            "JSON Parse error: The document is empty",
            "util/net_http/compression/gzip_zlib.cc UncompressGzipAndAllocate",
            headers=(("Content-Encoding", "gzip"),),
        )
        for name, body in [
            ("none", _ONE),
            ("half of it", _GZIPPED[:-9]),
            ("something behind it", _GZIPPED + b"more"),
            ("two", _GZIPPED + _GZIPPED),
        ]
    ),
    _bad(
        "gzip in capitals",
        _GZIPPED,
        "JSON Parse error: Invalid value. at offset: 0",
        f"{_EVENTS} NeedUncompressGzipContent",
        headers=(("Content-Encoding", "GZIP"),),
    ),
    Rest(
        "another coding",
        _ONE,
        f"{_EVENTS} NeedUncompressGzipContent",
        _ONE_ANSWER,
        headers=(("Content-Encoding", "br"),),
    ),
    # Bytes.
    Rest(
        "base64",
        _typed("text", instances=[{"b64": "/w=="}, {"b64": "/w"}, {"b64": " /\nw = ="}, "é"]),
        f"{_JSON} JsonDecodeBase64Object",
        {"predictions": [{"b64": "/w=="}] * 3 + [{"b64": "w6k="}]},
        path=TYPED,
    ),
    *(
        _bad(
            f"broken base64: {text}",
            _typed("text", instances=[{"b64": text}]),
            _ELEMENT.format(0, "Unable to base64 decode"),
            f"{_JSON} JsonDecodeBase64Object",
            path=TYPED,
        )
        for text in ("?", "é", "/", "/w=", "/w=w", "/w\u00a0==")
    ),
    Rest(
        "half a surrogate pair",
        _typed("text", inputs=["\udc00"]),
        f"{_PARSE} ParseString, where only a high half needs the other",
        {"outputs": [{"b64": "7bCA"}]},
        path=TYPED,
    ),
    _bad(
        "base64 given twice",
        '{"signature_name": "text", "inputs": [{"b64": "/w==", "b64": "/w=="}]}',
        'JSON Value: {\n    "b64": "/w==",\n    "b64": "/w=="\n} not formatted correctly for '
        "base64 data",
        f"{_JSON} IsValBase64Object",
        path=TYPED,
    ),
    _bad(
        "base64 that is no string",
        _typed("text", inputs=[{"b64": 1}]),
        'JSON Value: {\n    "b64": 1\n} not formatted correctly for base64 data',
        f"{_JSON} Base64FormatError",
        path=TYPED,
    ),
    _bad(
        "number for a string",
        _typed("text", inputs=[1]),
        "JSON Value: 1 Type: Number is not of expected type: string",
        f"{_JSON} TypeError",
        path=TYPED,
    ),
    # Paths and methods.
    _bad(
        "unknown path",
        None,
        "<HTML><HEAD>\n<TITLE>404 Not Found</TITLE>\n</HEAD><BODY>\n<H1>Not Found</H1>\n"
        "</BODY></HTML>\n",
        "model_servers/http_server.cc Dispatch; libevent http.c evhttp_send_error",
        404,
        method="GET",
        path="/v2/models",
    ),
    *(
        _bad(
            f"{method} {path}",
            body,
            f"Malformed request: {method} {path}",
            f"{_HANDLER} ProcessRequest",
            method=method,
            path=path,
        )
        for method, path, body in [
            ("GET", "/v1/models/shop/x", None),
            ("GET", PREDICT, None),
            ("POST", "/v1/models/shop", "{}"),
            ("POST", "/v1/models/shop:guess", "{}"),
            ("POST", f"{PREDICT}?a=1", _ONE),
            ("PUT", PREDICT, _ONE),
            ("POST", PREDICT.replace("predict", "PREDICT"), _ONE),
            ("POST", f"/v1/models/{HALF}/versions/-1:predict", _ONE),
            ("POST", f"/v1/models/{HALF}/versions/1/labels/a:predict", _ONE),
            ("POST", f"{PREDICT}?", _ONE),
            ("GET", "/v1/models/", None),
            ("GET", "/v1/models/shop/versions/1x", None),
            ("GET", "/v1/models/shop/metadata?", None),
            ("DELETE", "/v1/models/shop", None),
        ]
    ),
    *(
        _bad(
            f"path with a character that none has: {path}",
            None,
            "<HTML><HEAD>\n<TITLE>400 Bad Request</TITLE>\n</HEAD><BODY>\n<H1>Bad Request</H1>\n"
            "</BODY></HTML>\n",
            f"{_EVENTS} decode; libevent http.c end_of_path",
            method="GET",
            path=path,
        )
        for path in ("/v1/models/a|b", "/v1/models/a%zz", '/v1/models/"shop"', "/v1/models/{a}")
    ),
    Rest(
        "by version with zeros before it",
        _ONE,
        _PATH,
        _ONE_ANSWER,
        path=f"/v1/models/{HALF}/versions/{'0' * 30}123:predict",
    ),
    _bad("TRACE", None, Part("501 Not Implemented"), "libevent http.c", 501, method="TRACE"),
    _bad("OPTIONS", None, "", "model_servers/http_server.cc ProcessRequest", method="OPTIONS"),
    Rest(
        "OPTIONS with an origin",
        None,
        "model_servers/http_server.cc ProcessRequest",
        error="",
        method="OPTIONS",
        headers=(("Origin", "https://example.org"),),
    ),
    # Status and metadata.
    *(
        _bad(f"GET {path}", None, message, source, status, method="GET", path=path)
        for path, status, message, source in [
            ("/v1/models", 400, "Missing model name in request.", _HANDLER),
            ("/v1/models/nobody", 404, "Could not find any versions of model nobody", _STATUS),
            ("/v1/models/shop?", 404, "Could not find any versions of model shop?", _PATH),
            ("/v1/models/%6eobody", 404, "Could not find any versions of model nobody", _PATH),
            ("/v1/models/versions/1", 400, "Missing model name in request.", _HANDLER),
            ("/v1/models/shop/versions/0", 404, "Could not find version 0 of model shop", _STATUS),
            (
                "/v1/models/shop/versions/9",
                404,
                "Could not find version 9 of model shop",
                _STATUS,
            ),
            (
                "/v1/models/nobody/metadata",
                404,
                "Servable not found for request: Latest(nobody)",
                _MANAGER,
            ),
            (
                "/v1/models/shop/labels/canary/metadata",
                400,
                "Unrecognized servable version label: canary",
                f"{_CORE} GetModelVersionForLabel",
            ),
        ]
    ),
    *(
        Rest(
            f"status: {path}",
            None,
            f"{_STATUS}, highest version first",
            {
                "model_version_status": [
                    {
                        "version": version,
                        "state": "AVAILABLE",
                        "status": {"error_code": "OK", "error_message": ""},
                    }
                    for version in ("2", "1")
                ]
            },
            method="GET",
            path=path,
        )
        # Neither a label nor "metadata" in capitals is looked at.
        for path in ("/v1/models/shop", "/v1/models/shop/labels/canary", "/v1/models/shop/METADATA")
    ),
]


@dataclasses.dataclass(frozen=True)
class Grpc:
    """A call over gRPC, and its answer.

    `request` are the fields of the request; the arrays of `inputs` become its tensors. `answer` is
    the output of `half_plus_two`, or the response as protobuf text.
    """

    name: str
    request: dict[str, Any]
    source: str
    answer: Any = None
    code: str = "OK"
    error: str | Part = ""
    method: str = "Predict"
    inputs: dict[str, Any] = dataclasses.field(default_factory=dict)
    slow: bool = False


def _refused(
    name: str, request: dict[str, Any], code: str, error: str | Part, source: str, **more
) -> Grpc:
    return Grpc(name, request, source, code=code, error=error, **more)


def _spec(name: str = HALF, **more: Any) -> dict[str, Any]:
    return {"model_spec": {"name": name, **more}}


_X = {"x": np.array([2.0], np.float32)}
_INVALID, _MISSING, _STATE = "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION"
_RELOAD = "HandleReloadConfigRequest"


def _config(*models: dict[str, Any]) -> dict[str, Any]:
    return {"config": {"model_config_list": {"config": list(models)}}}


def _model(**fields: Any) -> dict[str, Any]:
    return {"name": HALF, "base_path": "/none", "model_platform": "tensorflow", **fields}


GRPC = [
    Grpc("one", _spec(), _PREDICT, [3.0], inputs=_X),
    Grpc("NaN", _spec(), _PREDICT, [np.nan], inputs={"x": np.array([np.nan], np.float32)}),
    Grpc("empty batch", _spec(), _PREDICT, [], inputs={"x": np.zeros(0, np.float32)}),
    Grpc("another rank", _spec(), _PREDICT, [[3.0]], inputs={"x": np.float32([[2.0]])}),
    Grpc(
        "5 MB",
        _spec(),
        "model_servers/server.cc SetMaxMessageSize",
        np.full(1_250_000, 3.0),
        inputs={"x": np.full(1_250_000, 2.0, np.float32)},
    ),
    Grpc(
        "50 MB",
        _spec(),
        "model_servers/server.cc SetMaxMessageSize",
        np.full(12_500_000, 3.0),
        inputs={"x": np.full(12_500_000, 2.0, np.float32)},
        slow=True,
    ),
    Grpc(
        "values in the field of their type",
        _spec(),
        f"{_PREDICT} PostProcessPredictionResult",
        'outputs {\n  key: "y"\n  value {\n    dtype: DT_FLOAT\n    tensor_shape {\n      dim {\n'
        "        size: 1\n      }\n    }\n    float_val: 3.0\n  }\n}\nmodel_spec {\n"
        f'  name: "{HALF}"\n  version {{\n    value: 123\n  }}\n'
        '  signature_name: "serving_default"\n}\n',
        inputs=_X,
    ),
    Grpc(
        "more values than the shape has",
        {
            **_spec(),
            "inputs": {
                "x": {
                    "dtype": 1,
                    "tensor_shape": {"dim": [{"size": 1}]},
                    "float_val": [2.0, 9.0],
                }
            },
        },
        "tf core/framework/tensor.cc FromProtoField",
        [3.0],
    ),
    _refused("no model spec", {}, _INVALID, "Missing ModelSpec", "predict_impl.cc Predict"),
    _refused(
        "no model name",
        {"model_spec": {"signature_name": "a"}},
        _INVALID,
        "ModelSpec has no name specified.",
        f"{_CORE} ServableRequestFromModelSpec",
    ),
    _refused(
        "missing model",
        _spec("nobody"),
        _MISSING,
        "Servable not found for request: Latest(nobody)",
        _MANAGER,
        inputs=_X,
    ),
    _refused(
        "long message",
        _spec("n" * 2000),
        _MISSING,
        f"Servable not found for request: Latest({'n' * 985}...TRUNCATED",
        "model_servers/grpc_status_util.cc ToGRPCStatus",
        inputs=_X,
    ),
    _refused(
        "version below zero",
        _spec(version={"value": -1}),
        _MISSING,
        f"Servable not found for request: Specific({HALF}, -1)",
        _MANAGER,
        inputs=_X,
    ),
    _refused(
        "missing version",
        _spec(version={"value": 9}),
        _MISSING,
        f"Servable not found for request: Specific({HALF}, 9)",
        _MANAGER,
        inputs=_X,
    ),
    _refused(
        "missing label",
        _spec(version_label="canary"),
        _INVALID,
        "Unrecognized servable version label: canary",
        f"{_CORE} GetModelVersionForLabel",
        inputs=_X,
    ),
    _refused(
        "missing signature",
        _spec(signature_name="z"),
        _STATE,
        'Serving signature key "z" not found.',
        f"{_PREDICT} RunPredict",
        inputs=_X,
    ),
    _refused(
        "missing input",
        _spec(),
        _INVALID,
        "input size does not match signature: 0!=1 len({}) != len({x}). Sent extra: {}. "
        "Missing but required: {x}.",
        f"{_PREDICT} VerifyRequestInputsSize",
    ),
    _refused(
        "extra input",
        _spec(),
        _INVALID,
        "input size does not match signature: 2!=1 len({x,z}) != len({x}). Sent extra: {z}. "
        "Missing but required: {}.",
        f"{_PREDICT} VerifyRequestInputsSize",
        inputs={**_X, "z": np.float32([1])},
    ),
    _refused(
        "input of another name",
        _spec(),
        _INVALID,
        "Signature input alias: x(feed name: serving_default_x:0) not found in request and no "
        "default value provided. Inputs expected to be in the request {z}, or default input alias "
        "set: ",
        "tf cc/saved_model/util.cc GetInputValues",
        inputs={"z": np.float32([1])},
    ),
    _refused(
        "signature that initializes",
        _spec(signature_name=_INIT),
        _INVALID,
        "Tried to fetch data for 'NoOp', which produces no output.  To run to a node but not fetch "
        "any data, pass 'NoOp' as an argument to the 'target_node_names' argument of the "
        "Session::Run API.",
        "tf core/graph/subgraph.cc FetchOutputs",
    ),
    _refused(
        "input for the signature that initializes",
        _spec(signature_name=_INIT),
        _INVALID,
        "input size does not match signature: 1!=0 len({x}) != len({}). Sent extra: {x}. "
        "Missing but required: {}.",
        f"{_PREDICT} VerifyRequestInputsSize",
        inputs=_X,
    ),
    *(
        _refused(
            f"{kind} for a float",
            _spec(),
            _INVALID,
            f"Expects arg[0] to be float but {kind} is provided",
            "tf core/framework/function.cc FunctionCallFrame::SetArgs",
            inputs={"x": array},
        )
        for kind, array in [
            ("double", np.array([1.0])),
            ("int64", np.array([1])),
            ("half", np.float16([1])),
            ("bool", np.array([True])),
            ("string", np.array([b"a"], object)),
        ]
    ),
    *(
        _refused(
            f"broken tensor: {name}",
            {**_spec(), "inputs": {"x": tensor}},
            _INVALID,
            "tensor parsing error: x",
            "tf cc/saved_model/util.cc GetInputValues",
        )
        for name, tensor in [
            (
                "half of it",
                {"dtype": 1, "tensor_shape": {"dim": [{"size": 2}]}, "tensor_content": b"123"},
            ),
            ("negative size", {"dtype": 1, "tensor_shape": {"dim": [{"size": -1}]}}),
            ("no type", {"tensor_shape": {"dim": [{"size": 1}]}, "float_val": [1.0]}),
        ]
    ),
    Grpc(
        "one value for all",
        {
            **_spec(),
            "inputs": {
                "x": {"dtype": 1, "tensor_shape": {"dim": [{"size": 3}]}, "float_val": [2.0]}
            },
        },
        "tf core/framework/tensor.cc FromProtoField",
        [3.0, 3.0, 3.0],
    ),
    _refused(
        "wrong shape",
        _spec("shop"),
        _INVALID,
        Part("[1,3] is not compatible with expected shape [?,2]"),
        "tf core/kernels/ensure_shape_op.cc",
        inputs={"inputs": np.zeros((1, 3), np.float32)},
    ),
    _refused(
        "missing output",
        {**_spec(), "output_filter": ["z"]},
        _INVALID,
        "output tensor alias not found in signature: z Outputs expected to be in the set {y}.",
        f"{_PREDICT} PreProcessPrediction",
        inputs=_X,
    ),
    _refused(
        "missing output and broken tensor",
        {
            **_spec(),
            "output_filter": ["z"],
            "inputs": {
                "x": {
                    "dtype": 1,
                    "tensor_shape": {"dim": [{"size": 2}]},
                    "tensor_content": b"123",
                }
            },
        },
        _INVALID,
        "tensor parsing error: x",
        f"{_PREDICT} PreProcessPrediction",
    ),
    _refused(
        "missing output and wrong type",
        {**_spec(), "output_filter": ["z"]},
        _INVALID,
        "output tensor alias not found in signature: z Outputs expected to be in the set {y}.",
        f"{_PREDICT} PreProcessPrediction",
        inputs={"x": np.array([1])},
    ),
    _refused(
        "output without a name",
        {**_spec(), "output_filter": [""]},
        _INVALID,
        "output tensor alias not found in signature:  Outputs expected to be in the set {y}.",
        f"{_PREDICT} PreProcessPrediction",
        inputs=_X,
    ),
    _refused(
        "output asked for twice",
        {**_spec(), "output_filter": ["y", "y"]},
        _INVALID,
        "duplicate output tensor alias: y",
        f"{_PREDICT} PreProcessPrediction",
        inputs=_X,
    ),
    # Metadata and status.
    _refused(
        "no metadata field",
        _spec(),
        _INVALID,
        "GetModelMetadataRequest must specify at least one metadata_field",
        "servables/tensorflow/get_model_metadata_impl.cc",
        method="GetModelMetadata",
    ),
    _refused(
        "unknown metadata field",
        {**_spec(), "metadata_field": ["size"]},
        _INVALID,
        "Metadata field size is not supported",
        "servables/tensorflow/get_model_metadata_impl.cc",
        method="GetModelMetadata",
    ),
    _refused(
        "unknown metadata field of a missing model",
        {**_spec("nobody"), "metadata_field": ["signature_def", ""]},
        _INVALID,
        "Metadata field  is not supported",
        "servables/tensorflow/get_model_metadata_impl.cc",
        method="GetModelMetadata",
    ),
    _refused(
        "metadata without a model name",
        {"model_spec": {}, "metadata_field": ["signature_def"]},
        _INVALID,
        "ModelSpec has no name specified.",
        f"{_CORE} ServableRequestFromModelSpec",
        method="GetModelMetadata",
    ),
    _refused(
        "status without a model name",
        {"model_spec": {}},
        _MISSING,
        "Could not find any versions of model ",
        _STATUS,
        method="GetModelStatus",
    ),
    Grpc(
        "status by a label, which is not looked at",
        _spec(version_label="canary"),
        _STATUS,
        "model_version_status {\n  version: 123\n  state: AVAILABLE\n  status {\n  }\n}\n",
        method="GetModelStatus",
    ),
    _refused(
        "status of a missing model",
        _spec("nobody"),
        _MISSING,
        "Could not find any versions of model nobody",
        _STATUS,
        method="GetModelStatus",
    ),
    _refused(
        "status of a missing version",
        _spec(version={"value": 9}),
        _MISSING,
        f"Could not find version 9 of model {HALF}",
        _STATUS,
        method="GetModelStatus",
    ),
    _refused(
        "status without a model spec",
        {},
        _INVALID,
        "Missing ModelSpec",
        "model_servers/get_model_status_impl.cc GetModelStatus",
        method="GetModelStatus",
    ),
    # Configurations that are refused before anything changes.
    _refused(
        "no configuration",
        {},
        _INVALID,
        "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList "
        "is currently supported",
        "model_servers/model_service_impl.cc HandleReloadConfigRequest",
        method=_RELOAD,
    ),
    _refused(
        "configuration of another kind",
        {"config": {"custom_model_config": {}}},
        _INVALID,
        "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList "
        "is currently supported",
        "model_servers/model_service_impl.cc HandleReloadConfigRequest",
        method=_RELOAD,
    ),
    _refused(
        "scheme of one letter",
        _config(_model(base_path="s://models")),
        _INVALID,
        f"Expected model {HALF} to have an absolute path or URI; got base_path()=s://models",
        f"{_CORE} UriIsRelativePath; tf io::ParseURI",
        method=_RELOAD,
    ),
    _refused(
        "platform and type",
        _config(_model(model_type=1)),
        _INVALID,
        "Illegal setting both ModelServerConfig::model_type (deprecated) and "
        f"ModelServerConfig::model_platform, model name is {HALF}",
        f"{_CORE} GetPlatform",
        method=_RELOAD,
    ),
    _refused(
        "unknown type",
        _config(_model(model_platform="", model_type=2)),
        _INVALID,
        "ModelServerConfig::model_type choice 2 not supported.",
        f"{_CORE} GetPlatform",
        method=_RELOAD,
    ),
    _refused(
        "model listed twice",
        _config(_model(), _model()),
        _INVALID,
        f"Illegal to list model {HALF} multiple times in config list",
        f"{_CORE} ValidateModelConfigList",
        method=_RELOAD,
    ),
    _refused(
        "relative path",
        _config(_model(base_path="models")),
        _INVALID,
        f"Expected model {HALF} to have an absolute path or URI; got base_path()=models",
        f"{_CORE} ValidateModelConfigList",
        method=_RELOAD,
    ),
    _refused(
        "no platform",
        _config(_model(model_platform="")),
        _INVALID,
        "Illegal setting neither ModelServerConfig::model_type (deprecated) nor "
        f"ModelServerConfig::model_platform, model name is {HALF}",
        f"{_CORE} GetPlatform",
        method=_RELOAD,
    ),
    _refused(
        "another platform",
        _config(_model(model_platform="torch")),
        _INVALID,
        f"Illegal to change a model's platform. For model {HALF} platform was tensorflow and new "
        "platform requested is torch",
        f"{_CORE} ValidateNoModelsChangePlatforms",
        method=_RELOAD,
    ),
    _refused(
        "label at a version that is not loaded",
        _config(_model(name="shop", version_labels={"stable": 9})),
        _STATE,
        "Request to assign label to version 9 of model shop, which is not currently available for "
        "inference",
        f"{_CORE} UpdateModelVersionLabelMap",
        method=_RELOAD,
    ),
    _refused(
        "label at a version that is not loaded, and a new model of another platform",
        _config(
            _model(name="shop", version_labels={"stable": 9}),
            _model(name="new", model_platform="torch"),
        ),
        _STATE,
        "Request to assign label to version 9 of model shop, which is not currently available for "
        "inference",
        f"{_CORE} ReloadConfig, labels before CreateStoragePathRoutes",
        method=_RELOAD,
    ),
]
