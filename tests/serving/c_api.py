"""Runs a SavedModel in TensorFlow's C library, where no Python of TensorFlow or Keras takes part.

    python c_api.py LIBRARY_FOLDER SAVED_MODEL INPUT OUTPUT ROWS COLUMNS

feeds ones of shape [ROWS, COLUMNS] and prints the output as JSON, or the library's error.
"""

import ctypes
import json
import sys
from ctypes import Structure, byref, c_char_p, c_float, c_int, c_int64, c_size_t, c_void_p

FLOAT = 1


class Output(Structure):
    _fields_ = [("operation", c_void_p), ("index", c_int)]


def load_library(folder):
    ctypes.CDLL(f"{folder}/libtensorflow_framework.so.2", mode=ctypes.RTLD_GLOBAL)
    library = ctypes.CDLL(f"{folder}/libtensorflow_cc.so.2")
    for name in ("NewStatus", "NewGraph", "NewSessionOptions", "LoadSessionFromSavedModel"):
        getattr(library, f"TF_{name}").restype = c_void_p
    for name in ("GraphOperationByName", "AllocateTensor", "TensorData"):
        getattr(library, f"TF_{name}").restype = c_void_p
    library.TF_TensorByteSize.restype = c_size_t
    library.TF_Message.restype = c_char_p
    return library


class Model:
    def __init__(self, library, directory):
        self.library = library
        self.status = c_void_p(library.TF_NewStatus())
        self.graph = c_void_p(library.TF_NewGraph())
        options = c_void_p(library.TF_NewSessionOptions())
        tags = (c_char_p * 1)(b"serve")
        self.session = c_void_p(
            library.TF_LoadSessionFromSavedModel(
                options, None, directory.encode(), tags, 1, self.graph, None, self.status
            )
        )
        self.check()

    def run(self, feed, fetch, rows, columns):
        size = rows * columns
        [answer] = self.request(feed, [fetch], [1.0] * size, [rows, columns])()
        count = self.library.TF_TensorByteSize(answer) // 4
        return list((c_float * count).from_address(self.library.TF_TensorData(answer)))

    def request(self, feed, fetches, values, shape):
        """Return a function that sends floats and returns the outputs, which `free` frees."""
        sizes = (c_int64 * len(shape))(*shape)
        byte_count = c_size_t(4 * len(values))
        tensor = c_void_p(self.library.TF_AllocateTensor(FLOAT, sizes, len(shape), byte_count))
        (c_float * len(values)).from_address(self.library.TF_TensorData(tensor))[:] = values
        given, count = self.find(feed), len(fetches)
        wanted = (Output * count)(*map(self.find, fetches))
        answers = (c_void_p * count)()

        def send():
            self.library.TF_SessionRun(
                self.session, None, byref(given), byref(tensor), 1,
                wanted, answers, count, None, 0, None, self.status,
            )  # fmt: skip
            self.check()
            return [c_void_p(answer) for answer in answers]

        return send

    def free(self, answers):
        for answer in answers:
            self.library.TF_DeleteTensor(answer)

    def find(self, name):
        operation, index = name.split(":")
        found = self.library.TF_GraphOperationByName(self.graph, operation.encode())
        return Output(found, int(index))

    def check(self):
        if self.library.TF_GetCode(self.status) != 0:
            raise RuntimeError(self.library.TF_Message(self.status).decode())


def main(folder, directory, feed, fetch, rows, columns):
    model = Model(load_library(folder), directory)
    try:
        answer = model.run(feed, fetch, int(rows), int(columns))
    except RuntimeError as error:
        answer = str(error)
    assert "tensorflow" not in sys.modules and "keras" not in sys.modules
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
