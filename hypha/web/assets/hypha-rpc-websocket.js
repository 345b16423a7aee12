/*
 * The client of hypha for JavaScript: for pages, dedicated workers and Node.
 *
 *   const server = await hyphaWebsocketClient.connectToServer({ server_url: "http://localhost:9000" });
 *   await server.registerService({ id: "tools", add: (a, b) => a + b });
 *   const other = await server.getService("hello-world");
 *   await other.hello("John");
 *
 * This file is served as it stands: as a classic script, which defines the global `hyphaWebsocketClient`, and, with a
 * few lines of exports behind it, as a module. It needs nothing but what browsers and Node have by themselves. From the
 * bottom up: msgpack, values, functions, services, messages in parts, the peer, the connection, and what programs see.
 *
 * Sections in parentheses are those of the protocol's description.
 */
var hyphaWebsocketClient = (function () {
  "use strict";

  // --- msgpack ----------------------------------------------------------------------------------------------------

  const MAX_NESTING = 512; // of what is written and read; values of programs are bounded more tightly
  const TIMESTAMP = -1;
  const MAX_SAFE = BigInt(Number.MAX_SAFE_INTEGER);
  const toUtf8 = new TextEncoder();
  const fromUtf8 = new TextDecoder("utf-8", { ignoreBOM: true }); // a text may begin with that character

  /** What a value is, also when it was made in another frame: `Date`, `Uint8Array`, `Object`. */
  const kindOf = (value) => Object.prototype.toString.call(value).slice(8, -1);

  /** A msgpack extension that this client does not know. Sent on, it is what came. */
  class Extension {
    constructor(type, data) {
      this.type = type;
      this.data = data;
    }
  }

  /** Writes values behind one another. */
  class Writer {
    constructor() {
      this._bytes = new Uint8Array(512);
      this._view = new DataView(this._bytes.buffer);
      this._size = 0;
    }

    /** All that was written. The writer is of no further use. */
    finish() {
      return this._bytes.subarray(0, this._size);
    }

    /** Write a value. Throws a TypeError or RangeError for what msgpack cannot express. */
    write(value, depth = MAX_NESTING) {
      if (depth === 0) throw new RangeError("the value is nested too deeply, or contains itself");
      switch (typeof value) {
        case "undefined":
          return this._byte(0xc0);
        case "boolean":
          return this._byte(value ? 0xc3 : 0xc2);
        case "number":
          return this._number(value);
        case "bigint":
          return this._bigint(value);
        case "string":
          return this._text(value);
        case "object":
          return value === null ? this._byte(0xc0) : this._object(value, depth);
        default:
          throw new TypeError(`a ${typeof value} cannot be sent`);
      }
    }

    _object(value, depth) {
      if (Array.isArray(value)) {
        this._head(value.length, 0x90, 15, null, 0xdc, 0xdd);
        for (let index = 0; index < value.length; index++) this.write(value[index], depth - 1);
        return;
      }
      if (value instanceof Extension) return this._extension(value.type, value.data);
      switch (kindOf(value)) {
        case "Uint8Array":
          this._head(value.length, 0, -1, 0xc4, 0xc5, 0xc6);
          return this._put(value);
        case "Date":
          return this._extension(TIMESTAMP, timestamp(value));
      }
      const keys = Object.keys(value);
      this._head(keys.length, 0x80, 15, null, 0xde, 0xdf);
      for (const key of keys) {
        this._text(key);
        this.write(value[key], depth - 1);
      }
    }

    _number(value) {
      if (!Number.isSafeInteger(value) || Object.is(value, -0)) {
        const at = this._room(9);
        this._bytes[at] = 0xcb;
        return this._view.setFloat64(at + 1, value);
      }
      if (value >= 0) {
        if (value < 0x80) this._byte(value);
        else if (value < 0x100) this._pair(0xcc, value);
        else if (value < 0x10000) this._wide(0xcd, 2, value);
        else if (value < 0x100000000) this._wide(0xce, 4, value);
        else this._long(0xcf, BigInt(value));
      } else if (value >= -0x20) this._byte(value & 0xff);
      else if (value >= -0x80) this._pair(0xd0, value & 0xff);
      else if (value >= -0x8000) this._wide(0xd1, 2, value & 0xffff);
      else if (value >= -0x80000000) this._wide(0xd2, 4, value >>> 0);
      else this._long(0xd3, BigInt(value));
    }

    _bigint(value) {
      if (value >= -MAX_SAFE && value <= MAX_SAFE) return this._number(Number(value));
      if (BigInt.asUintN(64, value) === value) return this._long(0xcf, value);
      if (BigInt.asIntN(64, value) === value) return this._long(0xd3, value);
      throw new RangeError("an integer of more than 64 bits cannot be sent");
    }

    _text(value) {
      const bytes = toUtf8.encode(value);
      this._head(bytes.length, 0xa0, 31, 0xd9, 0xda, 0xdb);
      this._put(bytes);
    }

    _extension(type, data) {
      const fixed = [1, 2, 4, 8, 16].indexOf(data.length);
      if (fixed >= 0) this._byte(0xd4 + fixed);
      else this._head(data.length, 0, -1, 0xc7, 0xc8, 0xc9);
      this._byte(type & 0xff);
      this._put(data);
    }

    /** A length: in the byte `small` itself up to `most`, or behind the byte for 8 (if there is one), 16 or 32 bits. */
    _head(length, small, most, byte8, byte16, byte32) {
      if (length <= most) this._byte(small | length);
      else if (byte8 !== null && length < 0x100) this._pair(byte8, length);
      else if (length < 0x10000) this._wide(byte16, 2, length);
      else this._wide(byte32, 4, length);
    }

    _byte(byte) {
      const at = this._room(1);
      this._bytes[at] = byte;
    }

    _pair(first, second) {
      const at = this._room(2);
      this._bytes[at] = first;
      this._bytes[at + 1] = second;
    }

    _wide(first, width, value) {
      const at = this._room(1 + width);
      this._bytes[at] = first;
      if (width === 2) this._view.setUint16(at + 1, value);
      else this._view.setUint32(at + 1, value);
    }

    _long(first, value) {
      const at = this._room(9);
      this._bytes[at] = first;
      this._view.setBigUint64(at + 1, BigInt.asUintN(64, value));
    }

    _put(bytes) {
      const at = this._room(bytes.length);
      this._bytes.set(bytes, at);
    }

    /** Make room for so many bytes; returns where they begin. It may replace the buffer: call it first. */
    _room(count) {
      const at = this._size;
      this._size += count;
      if (this._size > this._bytes.length) {
        const larger = new Uint8Array(Math.max(this._size, 2 * this._bytes.length));
        larger.set(this._bytes.subarray(0, at));
        this._bytes = larger;
        this._view = new DataView(larger.buffer);
      }
      return at;
    }
  }

  /** The data of a timestamp: whole seconds, or nanoseconds and seconds, in the shortest of its three forms. */
  function timestamp(date) {
    const time = date.getTime();
    if (Number.isNaN(time)) throw new TypeError("an invalid Date cannot be sent");
    const seconds = Math.floor(time / 1000);
    const nanoseconds = (time - seconds * 1000) * 1e6;
    const view = new DataView(new ArrayBuffer(12));
    if (seconds < 0 || seconds >= 2 ** 34) {
      view.setUint32(0, nanoseconds);
      view.setBigInt64(4, BigInt(seconds));
      return new Uint8Array(view.buffer);
    }
    if (nanoseconds || seconds >= 2 ** 32) {
      view.setBigUint64(0, (BigInt(nanoseconds) << 34n) | BigInt(seconds));
      return new Uint8Array(view.buffer, 0, 8);
    }
    view.setUint32(0, seconds);
    return new Uint8Array(view.buffer, 0, 4);
  }

  function readTimestamp(data) {
    const view = new DataView(data.buffer, data.byteOffset, data.length);
    if (data.length === 4) return new Date(view.getUint32(0) * 1000);
    if (data.length === 8) {
      const whole = view.getBigUint64(0);
      return new Date(Number(whole & 0x3ffffffffn) * 1000 + Math.floor(Number(whole >> 34n) / 1e6));
    }
    if (data.length === 12) {
      return new Date(Number(view.getBigInt64(4)) * 1000 + Math.floor(view.getUint32(0) / 1e6));
    }
    throw new RangeError("a timestamp has 4, 8 or 12 bytes");
  }

  /** Put an entry into a map of which somebody else chose the key: `__proto__` is a key like any other. */
  function putEntry(map, key, value) {
    if (key !== "__proto__") map[key] = value;
    else Object.defineProperty(map, key, { value, writable: true, enumerable: true, configurable: true });
  }

  /** Reads values that stand behind one another. Every method throws a RangeError when the bytes end too early. */
  class Reader {
    constructor(bytes) {
      this._bytes = bytes;
      this._view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
      this._at = 0;
    }

    /** Whether everything was read. */
    get done() {
      return this._at >= this._bytes.length;
    }

    /** The next value. Byte strings are copied, so that none keeps the whole message in memory. */
    read(depth = MAX_NESTING) {
      if (depth === 0) throw new RangeError("the value is nested too deeply");
      const byte = this._view.getUint8(this._at++);
      if (byte < 0x80) return byte;
      if (byte < 0x90) return this._map(byte & 0x0f, depth);
      if (byte < 0xa0) return this._array(byte & 0x0f, depth);
      if (byte < 0xc0) return this._text(byte & 0x1f);
      if (byte >= 0xe0) return byte - 0x100;
      switch (byte) {
        case 0xc0:
          return null;
        case 0xc2:
          return false;
        case 0xc3:
          return true;
        case 0xc4:
        case 0xc5:
        case 0xc6:
          return this._slice(this._length(byte - 0xc4)).slice();
        case 0xc7:
        case 0xc8:
        case 0xc9:
          return this._extension(this._length(byte - 0xc7));
        case 0xca:
          return this._view.getFloat32(this._skip(4));
        case 0xcb:
          return this._view.getFloat64(this._skip(8));
        case 0xcc:
        case 0xcd:
        case 0xce:
          return this._length(byte - 0xcc);
        case 0xcf:
          return asNumber(this._view.getBigUint64(this._skip(8)));
        case 0xd0:
          return this._view.getInt8(this._skip(1));
        case 0xd1:
          return this._view.getInt16(this._skip(2));
        case 0xd2:
          return this._view.getInt32(this._skip(4));
        case 0xd3:
          return asNumber(this._view.getBigInt64(this._skip(8)));
        case 0xd4:
        case 0xd5:
        case 0xd6:
        case 0xd7:
        case 0xd8:
          return this._extension(1 << (byte - 0xd4));
        case 0xd9:
        case 0xda:
        case 0xdb:
          return this._text(this._length(byte - 0xd9));
        case 0xdc:
        case 0xdd:
          return this._array(this._length(byte - 0xdc + 1), depth);
        case 0xde:
        case 0xdf:
          return this._map(this._length(byte - 0xde + 1), depth);
        default:
          throw new RangeError(`no value begins with the byte ${byte}`);
      }
    }

    /** An unsigned integer of 1, 2 or 4 bytes, for a `power` of 0, 1 or 2. */
    _length(power) {
      const at = this._skip(1 << power);
      if (power === 0) return this._view.getUint8(at);
      return power === 1 ? this._view.getUint16(at) : this._view.getUint32(at);
    }

    _skip(count) {
      const at = this._at;
      this._at += count;
      return at;
    }

    _slice(length) {
      const at = this._skip(length);
      if (this._at > this._bytes.length) throw new RangeError("the message ends within a value");
      return this._bytes.subarray(at, this._at);
    }

    _text(length) {
      return fromUtf8.decode(this._slice(length));
    }

    _array(length, depth) {
      const items = []; // grows with what is there: the length is only what somebody wrote
      for (let index = 0; index < length; index++) items.push(this.read(depth - 1));
      return items;
    }

    _map(length, depth) {
      const map = {};
      for (let index = 0; index < length; index++) {
        const key = this.read(depth - 1);
        if (isMap(key) || Array.isArray(key)) throw new TypeError("the key of a map must be a text or a number");
        putEntry(map, String(key), this.read(depth - 1));
      }
      return map;
    }

    _extension(length) {
      const type = this._view.getInt8(this._skip(1));
      const data = this._slice(length).slice();
      return type === TIMESTAMP ? readTimestamp(data) : new Extension(type, data);
    }
  }

  const asNumber = (integer) => (integer >= -MAX_SAFE && integer <= MAX_SAFE ? Number(integer) : integer);

  /** `values` as msgpack, behind one another. Throws for what cannot be expressed. */
  function pack(...values) {
    const writer = new Writer();
    for (const value of values) writer.write(value);
    return writer.finish();
  }

  /** The one value that `bytes` hold. Throws for what is none. */
  function unpack(bytes) {
    const reader = new Reader(bytes);
    const value = reader.read();
    if (!reader.done) throw new RangeError("there is something behind the value");
    return value;
  }

  // --- errors -----------------------------------------------------------------------------------------------------

  /** What goes wrong in a call: `name` says what kind of error, `code` is the same for programs, or null. */
  class HyphaError extends Error {
    constructor(name, message, code = null) {
      super(message);
      this.name = name;
      this.code = code;
    }
  }

  const notFound = (message) => new HyphaError("KeyError", message, "not_found");
  const permissionDenied = (message) => new HyphaError("PermissionError", message, "permission_denied");
  const invalid = (message) => new HyphaError("ValueError", message, "invalid_argument");
  const limitExceeded = (message) => new HyphaError("LimitExceeded", message, "limit_exceeded");
  const connectionLost = (message) => new HyphaError("ConnectionError", message, "peer_gone");

  const TRACEBACK = "Traceback (most recent call last)";

  /** The message of an error of another client. Python functions send their whole traceback: it is what ends that. */
  function errorText(told) {
    const text = typeof told === "string" ? told.trim() : "";
    if (!text.includes(TRACEBACK)) return text || "the function failed without a message";
    const lines = text.slice(text.lastIndexOf(TRACEBACK)).split("\n").slice(1);
    const first = lines.findIndex((line) => line && !/^[\s|+]/.test(line));
    return first < 0 ? lines.at(-1).trim() : lines.slice(first).join("\n");
  }

  /** What was thrown, in words: it may be anything. */
  function textOf(thrown) {
    try {
      return String(thrown);
    } catch {
      return kindOf(thrown);
    }
  }

  /** The map under which an error travels. */
  function encodeError(error) {
    const isRemote = error instanceof HyphaError && error.name === "RemoteError"; // passed on as it came
    const text = isRemote ? error.message : textOf(error);
    const map = { _rtype: "error", _rvalue: text, _rtrace: textOf(error?.stack || "") };
    if (error instanceof HyphaError && error.code) map._rcode = error.code;
    return map;
  }

  /** The error that a map tells of, of which `message` is the message and `trace` what its provider adds to it. */
  function decodeError(map) {
    const told = isMap(map) ? map : { _rvalue: map };
    const error = new HyphaError("RemoteError", errorText(told._rvalue), told._rcode ?? null);
    error.trace = [told._rtrace, told._rvalue].find((text) => text && typeof text === "string") || "";
    return error;
  }

  // --- values (3) -------------------------------------------------------------------------------------------------

  const MAX_DEPTH = 200; // of the values of programs

  const TYPED_ARRAYS = new Map(
    ["Int8", "Uint8", "Int16", "Uint16", "Int32", "Uint32", "BigInt64", "BigUint64", "Float16", "Float32", "Float64"]
      .map((name) => [name.replace("Big", "").toLowerCase(), globalThis[`${name}Array`]])
      .filter(([, type]) => type),
  );

  const isMap = (value) => value !== null && typeof value === "object" && !Array.isArray(value);
  const isFunction = (value) => typeof value === "function";
  const workspaceOf = (address) => address.split("/", 1)[0];

  /** What stands for functions and generators of others, and the maps as which they came. */
  const received = new WeakMap();

  function isGenerator(value) {
    return isFunction(value.next) && (isFunction(value[Symbol.asyncIterator]) || isFunction(value[Symbol.iterator]));
  }

  /**
   * Writes the values of one message. `offer` and `offerGenerator` make the maps under which functions and generators
   * are known to whom the message goes; `codecs` are those of the program.
   */
  class Encoder {
    constructor(offer, offerGenerator, codecs) {
      this._offer = offer;
      this._offerGenerator = offerGenerator;
      this._codecs = codecs;
    }

    /** `value` as msgpack can write it. Throws for what cannot travel. */
    encode(value, depth = MAX_DEPTH) {
      if (value === undefined || value === null) return null;
      if (isFunction(value)) return received.get(value) || this._offer(value);
      if (typeof value !== "object") return value;
      if (depth === 0) throw invalid(`the value is nested deeper than ${MAX_DEPTH} levels, or contains itself`);
      for (const codec of this._codecs.values()) {
        if (codec.encoder && value instanceof codec.type) return this._coded(codec, value, depth);
      }
      if (Array.isArray(value)) return Array.from(value, (item) => this.encode(item, depth - 1));
      return this._object(value, depth);
    }

    _coded(codec, value, depth) {
      const map = codec.encoder(value);
      if (!isMap(map)) throw invalid(`the encoder of the codec ${codec.name} must return an object`);
      return this._map({ ...map, _rtype: codec.name }, depth);
    }

    _object(value, depth) {
      const kind = kindOf(value);
      switch (kind) {
        case "Uint8Array":
        case "Date":
          return value;
        case "ArrayBuffer":
        case "SharedArrayBuffer":
          return { _rtype: "memoryview", _rvalue: new Uint8Array(value) };
        case "DataView":
          return { _rtype: "memoryview", _rvalue: bytesOf(value) };
        case "Set":
          return { _rtype: "set", _rvalue: Array.from(value, (item) => this.encode(item, depth - 1)) };
        case "Map":
          return { _rtype: "orderedmap", _rvalue: Array.from(value, (pair) => this.encode(pair, depth - 1)) };
        case "Blob":
        case "File":
          return this._blob(value);
        case "Promise":
          throw invalid("a promise cannot be sent: await it first");
      }
      if (value instanceof Error || kind === "Error" || kind === "DOMException") return encodeError(value);
      if (ArrayBuffer.isView(value)) return typedArray(kind, value);
      if (value instanceof Extension) return value;
      if (received.has(value)) return received.get(value);
      return isGenerator(value) ? this._offerGenerator(value) : this._map(value, depth);
    }

    _map(value, depth) {
      const map = {};
      for (const key of Object.keys(value)) putEntry(map, key, this.encode(value[key], depth - 1));
      return map;
    }

    /** A file that its receiver reads piece by piece. */
    _blob(blob) {
      let position = 0;
      const read = async (length) => {
        const whole = length === undefined || length === null || length < 0;
        const part = blob.slice(position, whole ? blob.size : position + length);
        position += part.size;
        return new Uint8Array(await part.arrayBuffer());
      };
      const seek = (offset, from = 0) => {
        position = Math.max(0, [0, position, blob.size][from] + offset);
        return position;
      };
      const functions = { read, seek, tell: () => position, close: () => null };
      const facts = { name: blob.name || "", size: blob.size, type: blob.type };
      return { _rtype: "iostream", _rnative: "js:blob", ...facts, ...this._map(functions, MAX_DEPTH) };
    }
  }

  const bytesOf = (view) => new Uint8Array(view.buffer, view.byteOffset, view.byteLength);

  function typedArray(kind, value) {
    const name = kind.replace("Big", "").replace("Clamped", "").replace("Array", "").toLowerCase();
    if (!TYPED_ARRAYS.has(name)) throw invalid(`a ${kind} cannot be sent`);
    return { _rtype: "typedarray", _rvalue: bytesOf(value), _rdtype: name };
  }

  /** The bytes of an array or a buffer, which may come in pieces; a copy, so that they are aligned. */
  function gathered(value) {
    const pieces = Array.isArray(value) ? value : [value];
    if (!pieces.every((piece) => piece instanceof Uint8Array)) throw invalid("the bytes of an array are missing");
    const whole = new Uint8Array(pieces.reduce((size, piece) => size + piece.length, 0));
    let at = 0;
    for (const piece of pieces) {
      whole.set(piece, at);
      at += piece.length;
    }
    return whole;
  }

  /** Reads the values of messages. `present` and `presentGenerator` make what stands for functions of others. */
  class Decoder {
    constructor(present, presentGenerator, codecs) {
      this._present = present;
      this._presentGenerator = presentGenerator;
      this._codecs = codecs;
    }

    /** `value` for the program. Relative targets lie in `workspace`, that of the sender. Throws for what is none. */
    decode(value, workspace, depth = MAX_DEPTH) {
      if (value === null || typeof value !== "object") return value;
      if (value instanceof Uint8Array || value instanceof Date || value instanceof Extension) return value;
      if (depth === 0) throw invalid(`the value is nested deeper than ${MAX_DEPTH} levels`);
      if (Array.isArray(value)) return value.map((item) => this.decode(item, workspace, depth - 1));
      return typeof value._rtype === "string" && Object.hasOwn(value, "_rtype")
        ? this._marked(value, workspace, depth)
        : this._map(value, workspace, depth);
    }

    _map(value, workspace, depth) {
      const map = {};
      for (const key of Object.keys(value)) {
        const item = this.decode(value[key], workspace, depth - 1);
        // A function of this name would make a promise of its map, and whoever awaits that would call it.
        putEntry(map, key, key === "then" && isFunction(item) ? value[key] : item);
      }
      return map;
    }

    _items({ _rvalue: items }, workspace, depth) {
      if (!Array.isArray(items)) throw invalid("the items of a set or a map are missing");
      return this.decode(items, workspace, depth - 1);
    }

    _marked(value, workspace, depth) {
      switch (value._rtype) {
        case "method":
          return this._present(absolute(value, workspace));
        case "generator":
          return this._presentGenerator(absolute(value, workspace));
        case "memoryview":
          return gathered(value._rvalue).buffer;
        case "typedarray": {
          const type = TYPED_ARRAYS.get(value._rdtype);
          return type ? new type(gathered(value._rvalue).buffer) : this._map(value, workspace, depth);
        }
        case "error":
          return decodeError(value);
        case "set":
          return new Set(this._items(value, workspace, depth));
        case "orderedmap":
          return new Map(this._items(value, workspace, depth));
      }
      const codec = this._codecs.get(value._rtype);
      const map = this._map(value, workspace, depth); // an ndarray, too: there is nothing else here for one
      return codec?.decoder ? codec.decoder(map) : map;
    }
  }

  /** The map of a function under the absolute address of who has it. */
  function absolute(map, workspace) {
    const isAddressed = typeof map._rtarget === "string" && typeof map._rmethod === "string";
    if (!isAddressed) throw invalid("a function has no address");
    return map._rtarget.includes("/") ? map : { ...map, _rtarget: `${workspace}/${map._rtarget}` };
  }

  // --- names and arguments ----------------------------------------------------------------------------------------

  const snakeCase = (name) => name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
  const camelCase = (name) => name.replace(/(?!^)_+([a-z0-9])/g, (_, letter) => letter.toUpperCase());

  /** A map with each of its keys in both spellings. */
  function inBothCases(map) {
    const both = {};
    for (const key of Object.keys(map)) both[camelCase(key)] = both[snakeCase(key)] = both[key] = map[key];
    return both;
  }

  /** `value` with all keys spelled by `convert`; functions of others stay what they are. */
  function withKeys(value, convert) {
    if (Array.isArray(value)) return value.map((item) => withKeys(item, convert));
    if (kindOf(value) !== "Object" || received.has(value)) return value;
    const map = {};
    for (const key of Object.keys(value)) putEntry(map, convert(key), withKeys(value[key], convert));
    return map;
  }

  /** The arguments by position, and those by keyword, which callers mark with `_rkwargs` in a last map (4.5). */
  function splitArguments(args) {
    const last = args.at(-1);
    if (!isMap(last) || last._rkwargs !== true) return [args, null];
    const { _rkwargs, ...kwargs } = last;
    return [args.slice(0, -1), kwargs];
  }

  const parameterCache = new WeakMap();

  /**
   * The parameters of a function by its source: `{ name, optional, rest }` each, where a pattern has no name. Nothing
   * is known of functions that are written in another language.
   */
  function parametersOf(fn) {
    if (!parameterCache.has(fn)) parameterCache.set(fn, readParameters(Function.prototype.toString.call(fn)));
    return parameterCache.get(fn);
  }

  function readParameters(source) {
    const single = /^(?:async\s+)?([\p{ID_Start}$_][\p{ID_Continue}$]*)\s*=>/u.exec(source);
    const pieces = single ? [single[1]] : /^class\b/.test(source) ? [] : parameterTexts(source);
    return pieces.map((piece) => {
      const rest = piece.startsWith("...");
      const name = /^[\p{ID_Start}$_][\p{ID_Continue}$]*/u.exec(rest ? piece.slice(3).trim() : piece);
      return { name: name ? name[0] : "", optional: rest || /^[^=]*=|\?$/.test(piece), rest };
    });
  }

  /** What stands between the first parentheses of `source`, outside of brackets, cut at its commas. */
  function parameterTexts(source) {
    const pieces = [];
    let depth = 0;
    let piece = "";
    let begun = false;
    const tokens = /\/\*[^]*?\*\/|\/\/[^\n]*|(["'`])(?:\\[^]|(?!\1)[^])*\1|[^]/g;
    for (const [token, quote] of source.matchAll(tokens)) {
      if (token.length > 1 && !quote) continue; // a comment
      if (!begun && token === "(" && depth === 0) begun = true;
      else if (begun && token === ")" && depth === 0) break;
      else if (begun && token === "," && depth === 0) {
        pieces.push(piece.trim());
        piece = "";
      } else {
        if (!quote && "([{".includes(token)) depth += 1;
        else if (!quote && ")]}".includes(token)) depth -= 1;
        if (begun) piece += token;
      }
    }
    return piece.trim() ? [...pieces, piece.trim()] : pieces;
  }

  const isContext = ({ name }) => name === "context" || name === "ctx";

  /**
   * The arguments with which to call a function of ours (4.4, 4.5). Keyword arguments take the places of the parameters
   * of their names; what is left of them is one map, in the first place that is free. The context takes the place of
   * the parameter `context`, whatever the caller has put there; without one it follows the other arguments.
   */
  function placeArguments(fn, args, kwargs, context) {
    const placed = [...args];
    const parameters = parametersOf(fn);
    const left = new Map(Object.entries(kwargs || {}));
    parameters.forEach(({ name }, index) => {
      if (index < args.length || !left.has(name)) return;
      placed[index] = left.get(name);
      left.delete(name);
    });
    if (left.size) {
      let place = args.length;
      while (place in placed) place += 1;
      placed[place] = Object.fromEntries(left);
    }
    if (context) {
      const place = parameters.findIndex(isContext);
      placed[place < 0 ? placed.length : place] = context;
    }
    return placed;
  }

  /** What a function takes, as JSON schema, for people and for callers that have only text. */
  function schemaOf(path, fn, injects) {
    if (fn.__schema__) return { name: path.split(".").at(-1), ...fn.__schema__ };
    const parameters = parametersOf(fn).filter((item) => item.name && !item.rest && !(injects && isContext(item)));
    return {
      name: path.split(".").at(-1),
      description: fn.__doc__ || path.split(".").at(-1),
      parameters: {
        type: "object",
        properties: Object.fromEntries(parameters.map(({ name }) => [name, {}])),
        required: parameters.filter(({ optional }) => !optional).map(({ name }) => name),
      },
    };
  }

  /** `fn` with the JSON schema that others see of it: `{ name, description, parameters }`. */
  function schemaFunction(fn, { name, description = "", parameters = { type: "object", properties: {} } } = {}) {
    const annotated = function (...args) {
      return fn.apply(this, args);
    };
    parameterCache.set(annotated, parametersOf(fn));
    annotated.__schema__ = { name: name || fn.name, description, parameters };
    return annotated;
  }

  // --- services and functions that others may call ------------------------------------------------------------------

  const FACTS = ["id", "name", "type", "description", "docs", "config", "app_id", "service_schema"];
  const VISIBILITIES = { public: "public", unlisted: "unlisted", protected: "protected", private: "protected" };
  const MAX_KEPT = 4096; // groups of functions that were sent in results

  // Node 18 has it as a module only.
  const random = globalThis.crypto || (typeof require === "function" && require("node:crypto").webcrypto);

  /** An unguessable name. */
  function newId() {
    const bytes = random.getRandomValues(new Uint8Array(16));
    return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  }

  /** The map under which a function travels (3.2). */
  const methodMap = (target, path, annotations = {}) => ({
    _rtype: "method",
    _rtarget: target,
    _rmethod: path,
    _rpromise: "*",
    ...annotations,
  });

  /** The public entries of what a program registers: of a map, or of an object and its class. */
  function contentOf(api) {
    const content = {};
    const isPublic = (key) => !key.startsWith("_") && key !== "constructor";
    for (let owner = api; owner && owner !== Object.prototype; owner = Object.getPrototypeOf(owner)) {
      const keys = owner === api ? Object.keys(owner) : Object.getOwnPropertyNames(owner);
      for (const key of keys) if (isPublic(key) && !Object.hasOwn(content, key)) putEntry(content, key, api[key]);
    }
    return content;
  }

  /** One service of ours. Throws for what cannot be registered. */
  class LocalService {
    constructor(api, config = {}) {
      if (!isMap(api)) throw invalid("registerService takes an object with an 'id' and functions");
      const content = contentOf(api);
      const isInstance = kindOf(api) === "Object" && ![Object.prototype, null].includes(Object.getPrototypeOf(api));
      this.id = content.id ?? (isInstance ? "default" : undefined);
      if (typeof this.id !== "string" || !/^[^\s/:@*.]+$/.test(this.id)) {
        throw invalid(`the id of a service is a text without / : @ * . and spaces, ${JSON.stringify(this.id)} is not`);
      }
      this.config = { visibility: "protected", ...content.config, ...config };
      if (!Object.hasOwn(VISIBILITIES, this.config.visibility)) {
        throw invalid(`visibility ${JSON.stringify(this.config.visibility)}: choose public, unlisted or protected`);
      }
      this.config.visibility = VISIBILITIES[this.config.visibility];
      this._facts = {
        name: content.name || this.id,
        type: content.type || "generic",
        description: content.description ?? null,
        docs: content.docs ?? null,
        app_id: content.app_id || "*",
      };
      this._content = Object.fromEntries(Object.entries(content).filter(([key]) => !FACTS.includes(key)));
      /** Path below the service -> `{ fn, owner, injects }`. */
      this.functions = new Map();
      this._collect(this._content, "", api, MAX_DEPTH);
    }

    /** Find the functions at and below `path`. Each is called as a method of what holds it. */
    _collect(value, path, owner, depth) {
      if (depth === 0) throw invalid(`the service ${this.id} is nested too deeply, or contains itself`);
      if (isFunction(value)) {
        const asked = this.config.require_context;
        const injects = asked === true || (Array.isArray(asked) && asked.includes(path));
        this.functions.set(path, { fn: value, owner, injects });
      } else if (Array.isArray(value) || kindOf(value) === "Object") {
        const holder = value === this._content ? owner : value;
        for (const key of Object.keys(value)) this._collect(value[key], joined(path, key), holder, depth - 1);
      }
    }

    /** Whether callers of `workspace` may call it (4.4); `home` is ours. */
    isOpenTo(workspace, home) {
      if (workspace === home || workspace === "*" || this.config.visibility !== "protected") return true;
      const others = this.config.authorized_workspaces;
      return Array.isArray(others) && others.includes(workspace);
    }

    /** The description that the server keeps (5.3). */
    info(address, workspace) {
      const schemas = {};
      for (const [path, { fn, injects }] of this.functions) {
        putEntry(schemas, path, { type: "function", function: schemaOf(path, fn, injects) });
      }
      const config = { ...this.config, workspace };
      return { id: `${address}:${this.id}`, ...this._facts, config, service_schema: schemas };
    }

    /** The service as a value, with its functions, to be called at `address`. */
    interface(address, workspace, encoder) {
      const content = this._encoded(this._content, "", address, encoder);
      return { ...content, ...encoder.encode(this.info(address, workspace)), id: this.id };
    }

    _encoded(value, path, address, encoder) {
      const offered = this.functions.get(path);
      if (offered) {
        const schema = schemaOf(path, offered.fn, offered.injects);
        const annotations = { _rname: path, _rdoc: offered.fn.__doc__ || null, _rschema: schema };
        return methodMap(address, `services.${this.id}.${path}`, annotations);
      }
      if (Array.isArray(value)) {
        return value.map((item, index) => this._encoded(item, joined(path, String(index)), address, encoder));
      }
      if (kindOf(value) !== "Object") return encoder.encode(value);
      const map = {};
      for (const key of Object.keys(value)) {
        putEntry(map, key, this._encoded(value[key], joined(path, key), address, encoder));
      }
      return map;
    }
  }

  const joined = (path, key) => (path ? `${path}.${key}` : key);

  /** The functions that went to `target` in one message. Each is called at `<id>.<name>`. */
  class Group {
    constructor(id, target) {
      this.id = id;
      this.target = target;
      this.functions = new Map();
      /** Called when nobody can call the functions any more. */
      this.onEnd = () => {};
    }

    /** Enter a function; returns the path at which it is called. */
    add(fn) {
      const name = `f${this.functions.size}`;
      this.functions.set(name, { fn, owner: undefined, injects: false });
      return `${this.id}.${name}`;
    }
  }

  /** What others may call here: services, and functions that went out in messages. */
  class Store {
    constructor() {
      this.services = new Map();
      this._open = new Map();
      this._kept = new Map();
    }

    /** The function at `path`, when `sender` may call it; `home` is our workspace. Throws when there is none for it. */
    find(path, sender, home) {
      const [head, second, ...rest] = path.split(".");
      if (head !== "services") return this._findCallback(head, [second, ...rest].join("."), sender);
      const service = this.services.get(second);
      const offered = service?.functions.get(rest.join("."));
      if (!offered) throw notFound(`Method not found: ${path.slice(0, 200)}`);
      if (!service.isOpenTo(workspaceOf(sender), home)) {
        throw permissionDenied(`Permission denied for invoking protected method ${path.slice(0, 200)} from ${sender}`);
      }
      return offered;
    }

    _findCallback(id, name, sender) {
      const group = this._open.get(id) || this._kept.get(id);
      const offered = group?.functions.get(name);
      const shown = `${id}.${name}`.slice(0, 200);
      if (!offered) throw notFound(`Method expired or not found: ${shown}`);
      if (group.target !== sender) throw permissionDenied(`Access denied for method call (${shown}) from ${sender}`);
      return offered;
    }

    /** The group of the call `id`, which lives until `close`. */
    open(id, target) {
      if (!this._open.has(id)) this._open.set(id, new Group(id, target));
      return this._open.get(id);
    }

    /** End the group of a call. */
    close(id) {
      this._open.delete(id);
    }

    /** A group that lives until its `target` is gone; the oldest of very many goes. */
    keep(target) {
      const group = new Group(newId(), target);
      this._kept.set(group.id, group);
      if (this._kept.size > MAX_KEPT) this.forget(this._kept.values().next().value);
      return group;
    }

    /** End a group of `keep`. */
    forget(group) {
      if (this._kept.delete(group.id)) group.onEnd();
    }

    /** Nothing that went to `target` will be called again. */
    forgetPeer(target) {
      for (const group of [...this._kept.values()]) if (group.target === target) this.forget(group);
    }

    /** The connection is over, and with it everything but the services. */
    clear() {
      this._open.clear();
      for (const group of [...this._kept.values()]) this.forget(group);
    }
  }

  // --- messages in parts (2.7) --------------------------------------------------------------------------------------

  const CACHE = "services.built-in.message_cache.";
  const SMALL_PART = 262144; // bytes that every peer takes in one message
  const LARGE_PART = 1024 * 1024; // the same of the server, and between clients that say so
  const HEADER_ROOM = 8192; // bytes of a frame that are not the part's
  const PARTS_AT_ONCE = 8;
  const MAX_KNOWN = 1000; // peers of which it is remembered what they take
  const MAX_PART_KEY = 1024; // characters
  const MAX_UNFINISHED = 64; // messages of one sender
  const MAX_UNFINISHED_BYTES = 2 ** 30; // of all senders
  const PART_ROOM = 128; // bytes that a part is charged beside its own

  /** Sends long messages, through the calls of a peer. */
  class PartsSender {
    constructor(peer) {
      this._peer = peer;
      this._known = new Map();
      this._limit = LARGE_PART;
    }

    /** Bytes of a message up to which it need not be asked what its receiver takes. */
    get small() {
      return Math.min(SMALL_PART, this._limit);
    }

    /** A connection has begun, to a server that takes frames of so many bytes. */
    begin(frameBytes) {
      this._known.clear();
      this._limit = Math.max(1, frameBytes - HEADER_ROOM);
    }

    /** What `target` takes: `{ partBytes, byIndex, promise }`. A modern one is asked once in each connection. */
    async able(target) {
      if (target === this._peer.manager) return { partBytes: this._fitting(LARGE_PART), byIndex: true, promise: "*" };
      const known = this._known.get(target) || (await this._ask(target));
      // An old one is asked each time: imjoy-rpc 0.5.6 fails a call whose answer begins to come in parts before it has
      // seen that the call is sent, and while it is asked, it has the time for that.
      if (known.byIndex) this._known.set(target, known);
      if (this._known.size > MAX_KNOWN) this._known.delete(this._known.keys().next().value);
      return known;
    }

    async _ask(target) {
      const options = { promise: true }; // every generation understands this one
      const service = await this._peer.call(target, "services.built-in.get_service", ["built-in"], options);
      const { api_version: version, part_bytes: size } = service?.config || {};
      const partBytes = this._fitting(Number.isInteger(size) && size > SMALL_PART ? size : SMALL_PART);
      return { partBytes, byIndex: version >= 3, promise: version >= 3 ? "*" : true };
    }

    _fitting(size) {
      return Math.min(size, this._limit);
    }

    /** Send `message`. `session` is the call that it answers, if any, which the parts keep alive. */
    async send(target, message, able, session) {
      const heartbeat = session !== null;
      const key = session ?? newId();
      const { promise } = able;
      // All by position: a client of imjoy-rpc appends the context after them.
      const call = (name, args) => this._peer.call(target, CACHE + name, args, { promise, isPart: true });
      try {
        await call("create", [key, heartbeat]);
        await this._sendParts(message, able, (index, part) =>
          able.byIndex ? call("set", [key, index, part, heartbeat]) : call("append", [key, part, heartbeat]),
        );
        await call("process", [key, heartbeat]);
      } catch (error) {
        this._known.delete(target); // another client may have come in its place
        call("remove", [key]).catch(() => {});
        throw error;
      }
    }

    async _sendParts(message, { partBytes, byIndex }, send) {
      const count = Math.ceil(message.length / partBytes);
      let next = 0;
      const run = async () => {
        while (next < count) {
          const index = next++;
          try {
            await send(index, message.subarray(index * partBytes, (index + 1) * partBytes));
          } catch (error) {
            next = count; // the others need not begin another one
            throw error;
          }
        }
      };
      await Promise.all(Array.from({ length: byIndex ? PARTS_AT_ONCE : 1 }, run));
    }
  }

  /** Puts together what others send in parts. Its methods throw what their caller is to hear. */
  class PartsReceiver {
    constructor() {
      this._senders = new Map(); // sender -> key -> { parts, size, isIdle }
      this._size = 0;
    }

    /** One call of a message cache; returns the message that it completes, or null. */
    take(sender, operation, [key, ...args]) {
      if (typeof key !== "string" || key.length > MAX_PART_KEY) throw invalid("the key of a message is a short text");
      switch (operation) {
        case "create":
          return this._create(sender, key, args[1] === true);
        case "append":
          return this._set(key, this._message(sender, key), this._message(sender, key).parts.size, args[0]);
        case "set":
          return this._set(key, this._message(sender, key), args[0], args[1]);
        case "process":
          return this._process(sender, key);
        case "remove":
          this._remove(sender, key, this._message(sender, key));
          return null;
        default:
          throw notFound(`Method not found: ${CACHE}${operation.slice(0, 100)}`);
      }
    }

    /** Forget messages that did not move since this was asked last: who gives up never says so. */
    dropIdle() {
      for (const [sender, messages] of [...this._senders]) {
        for (const [key, message] of [...messages]) {
          if (message.isIdle) this._remove(sender, key, message);
          message.isIdle = true;
        }
      }
    }

    clear() {
      this._senders.clear();
      this._size = 0;
    }

    _create(sender, key, overwrite) {
      const messages = this._senders.get(sender) || new Map();
      if (messages.has(key)) {
        if (!overwrite) throw invalid(`Message with the same key (${key.slice(0, 64)}) already exists`);
        this._remove(sender, key, messages.get(key));
      }
      if (messages.size >= MAX_UNFINISHED) throw limitExceeded(`${MAX_UNFINISHED} messages in parts are not finished`);
      messages.set(key, { parts: new Map(), size: 0, isIdle: false });
      this._senders.set(sender, messages);
      return null;
    }

    _set(key, message, index, data) {
      if (!(data instanceof Uint8Array) || !Number.isInteger(index) || index < 0) throw invalid("a part is bytes");
      const charge = (part) => (part ? part.length + PART_ROOM : 0);
      const more = charge(data) - charge(message.parts.get(index));
      if (this._size + more > MAX_UNFINISHED_BYTES) {
        throw limitExceeded(`messages in parts hold more than ${MAX_UNFINISHED_BYTES} bytes; try again later`);
      }
      message.parts.set(index, data);
      message.size += more;
      message.isIdle = false;
      this._size += more;
      return null;
    }

    _process(sender, key) {
      const message = this._message(sender, key);
      this._remove(sender, key, message);
      const pieces = Array.from(message.parts.keys(), (_, index) => message.parts.get(index));
      if (pieces.includes(undefined)) throw invalid(`message ${key.slice(0, 64)} has a missing part`);
      return gathered(pieces);
    }

    _message(sender, key) {
      const message = this._senders.get(sender)?.get(key);
      if (!message) throw notFound(`Message with key ${key.slice(0, 64)} does not exists.`);
      return message;
    }

    _remove(sender, key, message) {
      const messages = this._senders.get(sender);
      messages.delete(key);
      if (!messages.size) this._senders.delete(sender);
      this._size -= message.size;
    }
  }

  // --- the peer (4, 6) ----------------------------------------------------------------------------------------------

  const BUILT_IN = "services.built-in.";
  const MIN_INTERVAL_S = 0.1; // between heartbeats, however often a caller wants them
  const ANSWERS = new Set(["resolve", "reject", "heartbeat"]);
  const BUILT_IN_CONFIG = { visibility: "public", require_context: true, api_version: 3, part_bytes: LARGE_PART };

  const header = (target, method, session) => ({ type: "method", to: target, method, session });

  /** The two maps of a message: what the router reads, and the rest. Throws for what is no message. */
  function readMessage(bytes) {
    const reader = new Reader(bytes);
    const main = reader.read();
    if (!isMap(main) || typeof main.type !== "string") throw invalid("a message has no type");
    const extra = reader.done ? {} : reader.read();
    if (!isMap(extra)) throw invalid("the body of a message is no map");
    if (typeof main.session !== "string") delete main.session; // it goes into answers
    return { main, extra };
  }

  /** The arguments of a call and where its answer goes, `{ resolve, reject, heartbeat, interval }` or null (4.2). */
  function parseCall(main, extra) {
    let args = Array.isArray(extra.args) ? extra.args : [];
    let kwargs = null;
    if (extra.with_kwargs && args.length) {
      kwargs = args.at(-1);
      args = args.slice(0, -1);
      if (!isMap(kwargs)) throw invalid("keyword arguments are a map");
      delete kwargs._rkwargs;
    }
    return { args, kwargs, promise: parsePromise(main.session, extra) };
  }

  function parsePromise(session, { promise, t }) {
    const seconds = (value) => (value > 0 && value < 86400 ? Math.max(value, MIN_INTERVAL_S) : null);
    if (promise === "*" && typeof session === "string") {
      const [resolve, reject, heartbeat] = ["resolve", "reject", "heartbeat"].map((name) => `${session}.${name}`);
      return { resolve, reject, heartbeat, interval: seconds(t) };
    }
    const method = (name) => (typeof promise?.[name]?._rmethod === "string" ? promise[name]._rmethod : null);
    const [resolve, reject, heartbeat] = ["resolve", "reject", "heartbeat"].map(method);
    if (resolve === null || reject === null) return null;
    return { resolve, reject, heartbeat, interval: seconds(promise.interval) };
  }

  /** A call of ours that waits for its answer; it fails when there was no sign of the callee for `patience` seconds. */
  class PendingCall {
    constructor(target, method, patience) {
      this.target = target;
      this._text = `Method call timed out: ${target}:${method} gave neither a result nor a heartbeat for ${patience} s`;
      this._milliseconds = patience * 1000;
      this.answer = new Promise((resolve, reject) => {
        this.resolve = resolve;
        this.reject = reject;
      });
      this.answer.catch(() => {}); // whoever waits hears of it; that nobody waits yet is no fault
    }

    /** There was a sign of life. */
    alive() {
      clearTimeout(this._timer);
      if (Number.isFinite(this._milliseconds)) this._timer = setTimeout(() => this._expire(), this._milliseconds);
    }

    _expire() {
      this.reject(new HyphaError("TimeoutError", this._text, "call_timeout"));
    }

    close() {
      clearTimeout(this._timer);
    }
  }

  /**
   * The presence of a program at the server, which survives its connections: it calls the functions of others, and its
   * own are called. `patience` is in seconds; `onEvent` takes what is no call.
   */
  class Peer {
    constructor(patience, onEvent) {
      this.store = new Store();
      this.codecs = new Map();
      /** `workspace/client`, as others address it, our workspace, and the address of the server's own services. */
      this.name = this.workspace = this.manager = "";
      this._patience = patience;
      this._onEvent = onEvent;
      this._channel = null;
      this._waiting = new Set();
      this._over = null;
      this._calls = new Map();
      this._partsOut = new PartsSender(this);
      this._partsIn = new PartsReceiver();
      this._decoder = new Decoder(
        (map) => this._presentFunction(map),
        (map) => this._presentGenerator(map),
        this.codecs,
      );
    }

    // the connection

    /** Speak through `channel` from now on. */
    attach(channel) {
      const { info } = channel;
      this.workspace = info.workspace;
      this.name = `${info.workspace}/${info.client_id}`;
      this.manager = `*/${info.manager_id}`;
      this._partsOut.begin(info.frame_bytes || 2 * LARGE_PART);
      this._channel = channel;
      this._wake();
    }

    /** The connection is over: calls fail with `error`, and nothing of it is left but the services. */
    detach(error) {
      this._channel = null;
      for (const call of this._calls.values()) call.reject(error);
      this._calls.clear();
      this.store.clear();
      this._partsIn.clear();
    }

    /** There will be no connection any more; calls fail with `error`. */
    end(error) {
      this._over = error;
      this._wake();
    }

    _wake() {
      for (const wake of [...this._waiting]) wake();
    }

    /** The connection, when there is one: waits while the client comes back, as long as for an answer. */
    async channel() {
      const deadline = Date.now() + this._patience * 1000;
      while (!this._channel) {
        if (this._over) throw this._over;
        if (Date.now() >= deadline) throw connectionLost("there is no connection to the server");
        await this._woken(deadline - Date.now());
      }
      return this._channel;
    }

    _woken(milliseconds) {
      return new Promise((resolve) => {
        const wake = () => {
          clearTimeout(timer);
          this._waiting.delete(wake);
          resolve();
        };
        const timer = Number.isFinite(milliseconds) ? setTimeout(wake, milliseconds) : undefined;
        this._waiting.add(wake);
      });
    }

    /** Take a message that has come. Nothing in it can end the connection. */
    take(bytes) {
      try {
        this._dispatch(readMessage(bytes));
      } catch (error) {
        console.warn(`hypha: dropped a message that cannot be read: ${error}`);
      }
    }

    /** Forget messages in parts that do not move any more. To be called from time to time. */
    dropIdleParts() {
      this._partsIn.dropIdle();
    }

    // calling

    /**
     * Call `method` of `target`; gives its value, or throws a HyphaError. `promise` is the form in which the answer is
     * wanted, as the function's own map says (4.2); without any nothing is waited for. `isPart` calls are sent whole.
     */
    async call(target, method, args, { kwargs = null, promise = "*", isPart = false } = {}) {
      const channel = this._channel || (await this.channel());
      const session = newId();
      const call = new PendingCall(target, method, this._patience);
      this._calls.set(session, call);
      try {
        const extra = { ...this._arguments(args, kwargs, session, target), ...this._promise(promise, session) };
        const main = header(target, method, session);
        await (isPart ? channel.send(pack(main, extra)) : this._send(channel, main, extra, null));
        if (!promise) return null;
        call.alive();
        return this._decoder.decode(await call.answer, workspaceOf(target));
      } finally {
        call.close();
        this._calls.delete(session);
        this.store.close(session);
      }
    }

    _arguments(args, kwargs, session, target) {
      const encoder = this._encoder(target, session);
      const encoded = args.map((item) => encoder.encode(item));
      return kwargs ? { args: [...encoded, encoder.encode(kwargs)], with_kwargs: true } : { args: encoded };
    }

    _promise(promise, session) {
      if (!promise) return {};
      const interval = Math.min(this._patience / 2, 15);
      if (promise === "*") return { promise: "*", t: interval };
      const callback = (name) => ({ ...methodMap(this.name, `${session}.${name}`), _rpromise: name === "heartbeat" });
      const [heartbeat, resolve, reject] = ["heartbeat", "resolve", "reject"].map(callback);
      return { promise: { heartbeat, interval, resolve, reject } };
    }

    /** Encodes for `target`. Functions live as long as the call `session`, or, for null, until `target` is gone. */
    _encoder(target, session) {
      let group = null;
      const offer = (fn) => {
        group ||= session === null ? this.store.keep(target) : this.store.open(session, target);
        return methodMap(this.name, group.add(fn), { _rname: fn.name || "" });
      };
      return new Encoder(offer, (generator) => this._offerGenerator(target, generator), this.codecs);
    }

    _offerGenerator(target, generator) {
      const group = this.store.keep(target);
      let isClosed = false;
      const close = () => {
        if (isClosed) return;
        isClosed = true;
        this.store.forget(group);
        // What it throws while it tidies up, nobody waits for.
        Promise.resolve(generator.return?.()).catch((error) => console.warn(`hypha: closing a generator: ${error}`));
      };
      const next = async () => {
        let item;
        try {
          item = await generator.next();
        } catch (error) {
          isClosed = true;
          this.store.forget(group);
          throw error;
        }
        if (!item.done) return item.value;
        isClosed = true;
        this.store.forget(group);
        return { _rtype: "stop_iteration" };
      };
      group.onEnd = close;
      const [_rmethod, _rclose_method] = [group.add(next), group.add(close)];
      return { _rtype: "generator", _rtarget: this.name, _rmethod, _rclose_method, _rpromise: "*", _rdoc: null };
    }

    _presentFunction(map) {
      const present = async (...args) => {
        const [positional, kwargs] = splitArguments(args);
        return this.call(map._rtarget, map._rmethod, positional, { kwargs, promise: map._rpromise ?? true });
      };
      Object.defineProperty(present, "name", { value: String(map._rname || map._rmethod) });
      present.__doc__ = map._rdoc ?? null;
      present.__schema__ = map._rschema ?? null;
      received.set(present, map);
      return present;
    }

    /** An async generator of what another client yields; leaving it early closes it there. */
    _presentGenerator(map) {
      let isOver = false;
      const finish = (value) => {
        isOver = true;
        return { done: true, value };
      };
      const close = () => {
        if (isOver || typeof map._rclose_method !== "string") return;
        this._put({ type: "method", to: map._rtarget, method: map._rclose_method }, { args: [] });
      };
      const next = async () => {
        if (isOver) return finish(undefined);
        try {
          const value = await this.call(map._rtarget, map._rmethod, [], { promise: map._rpromise ?? "*" });
          return value?._rtype === "stop_iteration" ? finish(undefined) : { done: false, value };
        } catch (error) {
          close();
          isOver = true;
          throw error;
        }
      };
      const leave = async (value) => {
        close();
        return finish(value);
      };
      const fail = async (error) => {
        await leave();
        throw error;
      };
      const present = { next, return: leave, throw: fail, [Symbol.asyncIterator]: () => present };
      received.set(present, map);
      return present;
    }

    // sending

    /** Send a message, in parts when it is long. `session` is the call that it answers, if any. */
    async _send(channel, main, extra, session) {
      const message = pack(main, extra);
      if (message.length <= this._partsOut.small) return channel.send(message);
      const able = await this._partsOut.able(main.to);
      if (message.length <= able.partBytes) return channel.send(message);
      return this._partsOut.send(main.to, message, able, session);
    }

    /** Send a small message at once, without waiting for room. */
    _put(main, extra) {
      this._channel?.put(extra === undefined ? pack(main) : pack(main, extra));
    }

    /** Send an event: a map with `type` and `to`, and whatever else. */
    async emit({ type, to, ...content }) {
      const channel = await this.channel();
      await channel.send(pack({ type, to }, this._encoder(to, null).encode(content)));
    }

    // being called

    _dispatch({ main, extra }) {
      if (main.type !== "method" || typeof main.method !== "string") return this._takeEvent(main, extra);
      const sender = String(main.from);
      const dot = main.method.lastIndexOf(".");
      const [session, name] = [main.method.slice(0, Math.max(0, dot)), main.method.slice(dot + 1)];
      if (ANSWERS.has(name) && this._calls.has(session)) {
        this._takeAnswer(sender, session, name, main, extra);
      } else if (main.method.startsWith(BUILT_IN)) {
        this._answerAtOnce(main, extra, () => this._builtIn(main, extra, sender));
      } else if (!ANSWERS.has(name) || main.session) {
        this._start(main, extra, sender); // the rest are late answers
      }
    }

    _takeAnswer(sender, session, name, main, extra) {
      const call = this._calls.get(session);
      if (call.target !== sender) return; // nobody else may settle it
      if (name === "heartbeat") {
        call.alive();
        // Older clients want to know that they were heard.
        if (main.session) this._answerAtOnce(main, extra, () => null);
        return;
      }
      const value = (Array.isArray(extra.args) ? extra.args[0] : null) ?? null;
      if (name === "resolve") call.resolve(value);
      else call.reject(decodeError(value));
    }

    _takeEvent(main, extra) {
      const event = this._decoder.decode({ ...extra, ...main }, this.workspace);
      // The server's own have no sender; a client could only pretend.
      if (main.type === "client_disconnected" && main.from === undefined && isMap(event.data)) {
        this.store.forgetPeer(`${this.workspace}/${event.data.id}`);
      }
      this._onEvent(event, main);
    }

    _answerAtOnce(main, extra, fn) {
      const { promise } = parseCall(main, extra);
      try {
        const value = fn();
        if (promise) this._put(answerHeader(main, promise.resolve), { args: [value] });
      } catch (error) {
        if (promise) this._put(answerHeader(main, promise.reject), { args: [encodeError(error)] });
      }
    }

    _start(main, extra, sender) {
      let offered, call;
      try {
        offered = this.store.find(main.method, sender, this.workspace);
        call = parseCall(main, extra);
      } catch (error) {
        return this._answerAtOnce(main, extra, () => {
          throw error;
        });
      }
      const warn = (error) => console.warn(`hypha: an answer was not sent: ${error}`);
      this._serve(main, sender, offered, call).catch(warn);
    }

    /** One call of another client. Whatever the function does, its caller gets a result or an error. */
    async _serve(main, sender, offered, call) {
      const channel = this._channel;
      const stop = this._beat(main, call.promise);
      try {
        const [succeeded, value] = await this._outcome(main, sender, offered, call);
        if (!call.promise || channel !== this._channel) return;
        await this._answer(channel, main, call.promise, succeeded, value);
      } finally {
        stop();
      }
    }

    /** Tell the caller again and again that its call goes on (4.6). Returns what ends that. */
    _beat(main, promise) {
      if (!promise?.heartbeat || !promise.interval) return () => {};
      const beat = () => {
        this._put({ type: "method", to: main.from, method: promise.heartbeat, parent: main.session ?? null });
        timer = setTimeout(beat, promise.interval * 1000);
      };
      let timer = setTimeout(beat, promise.interval * 800);
      return () => clearTimeout(timer);
    }

    async _outcome(main, sender, { fn, owner, injects }, { args, kwargs }) {
      try {
        const decode = (value) => this._decoder.decode(value, workspaceOf(sender));
        const context = injects ? decode({ ...main, connection_type: "websocket" }) : null;
        const placed = placeArguments(fn, args.map(decode), kwargs && decode(kwargs), context);
        const value = await fn.apply(owner, placed);
        return [true, this._encoder(sender, null).encode(value)];
      } catch (error) {
        return [false, encodeError(error)];
      }
    }

    async _answer(channel, main, promise, succeeded, value) {
      const session = main.session ?? promise.resolve.slice(0, promise.resolve.lastIndexOf("."));
      const method = succeeded ? promise.resolve : promise.reject;
      try {
        await this._send(channel, answerHeader(main, method, session), { args: [value] }, session);
      } catch (error) {
        this._put(answerHeader(main, promise.reject, session), { args: [encodeError(error)] });
      }
    }

    // the service that every client has

    _builtIn(main, extra, sender) {
      const name = main.method.slice(BUILT_IN.length);
      const { args, kwargs } = parseCall(main, extra);
      if (name.startsWith("message_cache.")) {
        return this._takePart(main, sender, name.slice("message_cache.".length), args, kwargs);
      }
      if (name === "ping") {
        if (args[0] !== "ping") throw invalid("ping takes the text 'ping'");
        return "pong";
      }
      if (name === "get_service") return this._getService(sender, args[0]);
      throw notFound(`Method not found: ${main.method.slice(0, 200)}`);
    }

    _getService(sender, id) {
      if (id === "built-in") return this._builtInInterface();
      const service = this.store.services.get(id);
      if (!service) throw notFound(`'Service not found: ${String(id).slice(0, 200)}'`);
      if (!service.isOpenTo(workspaceOf(sender), this.workspace)) {
        throw permissionDenied(`Permission denied for getting protected service: ${service.id}`);
      }
      return service.interface(this.name, this.workspace, this._encoder(sender, null));
    }

    _builtInInterface() {
      const functions = (names, prefix) =>
        Object.fromEntries(names.map((name) => [name, methodMap(this.name, BUILT_IN + prefix + name)]));
      return {
        id: "built-in",
        name: "built-in",
        type: "built-in",
        config: { ...BUILT_IN_CONFIG, workspace: this.workspace },
        message_cache: functions(["create", "append", "set", "process", "remove"], "message_cache."),
        ...functions(["ping", "get_service"], ""),
      };
    }

    _takePart(main, sender, operation, args, kwargs) {
      const given = kwargs ? partArguments(operation, args, kwargs) : args;
      const heartbeat = { create: 1, append: 2, set: 3, process: 1 }[operation];
      if (given[heartbeat] === true) this._keepAlive(sender, given[0]);
      const message = this._partsIn.take(sender, operation, given);
      if (message) this._dispatchWhole(main, message);
      return null;
    }

    /** A part of the answer to one of our calls has come. */
    _keepAlive(sender, session) {
      const call = this._calls.get(session);
      if (call?.target !== sender) throw notFound(`session does not exist anymore: ${String(session).slice(0, 100)}`);
      call.alive();
    }

    /** Dispatch a message that came in parts: it is from whom the last of them is from. */
    _dispatchWhole(outer, bytes) {
      const { main, extra } = readMessage(bytes);
      if (typeof main.method === "string" && main.method.startsWith(CACHE)) {
        throw invalid("a message in parts cannot itself be a part");
      }
      for (const name of ["from", "to", "user", "ws"]) main[name] = outer[name];
      this._dispatch({ main, extra });
    }
  }

  const answerHeader = (main, method, session = main.session ?? null) => ({
    type: "method",
    to: main.from,
    method,
    parent: session,
  });

  const PART_ARGUMENTS = {
    create: ["key", "heartbeat", "overwrite"],
    append: ["key", "data", "heartbeat"],
    set: ["key", "index", "data", "heartbeat"],
    process: ["key", "heartbeat"],
    remove: ["key"],
  };

  /** The arguments of a part by position: the oldest clients give some by keyword. */
  function partArguments(operation, args, kwargs) {
    const names = Object.hasOwn(PART_ARGUMENTS, operation) ? PART_ARGUMENTS[operation] : [];
    return names.map((name, index) => (index < args.length ? args[index] : kwargs[name]));
  }

  // --- the connection (1) -------------------------------------------------------------------------------------------

  const HANDSHAKE_MS = 30_000; // in which the server must let a client in, or refuse it
  const SILENCE_MS = 20_000; // after a ping, until the connection is given up
  const GOODBYE_MS = 1000;
  const IDLE_MS = 60_000; // in which the next part of a message must come, or twice as many
  const STABLE_MS = 5000; // a connection that lived for less is a failed attempt
  const MAX_DELAY_S = 60;
  const MAX_BUFFERED = 8 * 1024 * 1024; // bytes that wait in the websocket before what is next waits here
  const FIRST_REFRESH_S = 2; // seconds after which a fresh reconnection token is asked for

  /** The server does not want this client, now or later. */
  class Refused extends HyphaError {}

  /** The address of the websocket of the server at `url` (1.1). */
  function websocketUrl(url) {
    if (typeof url !== "string" || !/^(https?|wss?):\/\/[^/]/.test(url)) {
      throw invalid(`connectToServer needs a server_url such as http://localhost:9000, not ${JSON.stringify(url)}`);
    }
    return /^ws/.test(url) ? url : `${url.replace(/^http/, "ws").replace(/\/+$/, "")}/ws`;
  }

  /** An open websocket after the handshake. `onMessage` gets bytes and maps, `onLost` the reason, once, at its end. */
  class Channel {
    constructor(socket, info, settings) {
      this.info = info;
      this.onMessage = () => {};
      this.onLost = () => {};
      this._socket = socket;
      this._isOpen = true;
      this._pingedAt = null;
      this._timers = [];
      socket.onmessage = ({ data }) => this._take(data);
      socket.onclose = ({ code, reason }) => this._lose(`it was closed with ${code}${reason ? `: ${reason}` : ""}`);
      this._every(settings.ping_interval, () => this._ping(), settings.ping_interval);
      const life = info.reconnection_token_life_time || 3600;
      this._every(Math.min(7200, life / 1.5), () => this._putText({ type: "refresh_token" }), FIRST_REFRESH_S);
    }

    /** Call `fn` after `first` seconds and then every `seconds`, as long as the connection lives. */
    _every(seconds, fn, first) {
      const index = this._timers.length;
      const run = () => {
        this._timers[index] = setTimeout(run, seconds * 1000);
        fn();
      };
      this._timers.push(setTimeout(run, first * 1000));
    }

    _take(data) {
      this._pingedAt = null;
      if (typeof data !== "string") return this.onMessage(new Uint8Array(data));
      const document = readText(data);
      if (document) this.onMessage(document);
    }

    _ping() {
      // Whether the server answers is asked here and not by a timer of its own: pages in the background are woken
      // seldom, and what comes meanwhile is heard all the same.
      if (this._pingedAt !== null && Date.now() - this._pingedAt > SILENCE_MS) return this._lose("it does not answer");
      this._pingedAt ??= Date.now();
      this._putText({ type: "ping" });
    }

    _putText(document) {
      if (this._isOpen) this._socket.send(JSON.stringify(document));
    }

    /** Send a message at once: for what is small. */
    put(bytes) {
      if (this._isOpen) this._socket.send(bytes);
    }

    /** Send a message when there is room for it. Throws when the connection is lost. */
    async send(bytes) {
      while (this._isOpen && this._socket.bufferedAmount > MAX_BUFFERED) await sleep(10);
      if (!this._isOpen) throw connectionLost("the connection to the server was lost");
      this._socket.send(bytes);
    }

    /** Say goodbye, for which the server has a second. `onLost` is not told. */
    async close() {
      if (!this._isOpen) return;
      this._isOpen = false;
      this._timers.forEach(clearTimeout);
      const closed = new Promise((resolve) => {
        this._socket.onclose = resolve;
      });
      this._socket.onmessage = null;
      this._socket.close(1000);
      await Promise.race([closed, sleep(GOODBYE_MS)]);
    }

    _lose(why) {
      if (!this._isOpen) return;
      this._isOpen = false;
      this._timers.forEach(clearTimeout);
      // A dead network never closes it; and nobody listens any more.
      this._socket.onmessage = this._socket.onclose = null;
      this._socket.close();
      this.onLost(connectionLost(`the connection to the server was lost: ${why}`));
    }
  }

  const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

  /** A text of the server's as a map, or null. */
  function readText(text) {
    try {
      const document = JSON.parse(text);
      return isMap(document) ? document : null;
    } catch {
      return null;
    }
  }

  /**
   * Connect and introduce ourselves (1.2). `accept` is called with the Channel at the moment in which there is one, so
   * that nothing can come before somebody listens. Rejects with Refused, or with what else prevents it.
   */
  function openChannel(settings, credentials, accept) {
    return new Promise((resolve, reject) => {
      const socket = new settings.WebSocket(settings.url);
      socket.binaryType = "arraybuffer";
      const timer = setTimeout(() => fail(connectionLost(`${settings.url} does not answer`)), HANDSHAKE_MS);
      const fail = (error) => {
        clearTimeout(timer);
        socket.onmessage = socket.onclose = null;
        socket.close();
        reject(error);
      };
      socket.onopen = () => socket.send(JSON.stringify(credentials));
      socket.onerror = () => {}; // it is closed after that
      socket.onclose = ({ code, reason }) =>
        fail(connectionLost(`cannot connect to ${settings.url}: ${reason || `closed with ${code}`}`));
      socket.onmessage = ({ data }) => {
        const document = typeof data === "string" ? readText(data) : null;
        if (document?.type === "error") {
          const text = String(document.message || document.detail || "the server gave no reason");
          fail(new Refused("ConnectionAbortedError", text, document.code ?? null));
        } else if (document?.type === "connection_info") {
          clearTimeout(timer);
          const channel = new Channel(socket, document, settings);
          accept(channel);
          resolve(channel);
        }
      };
    });
  }

  /**
   * The connections of one `peer`, one after the other (1.6). `onUp` is awaited when there is a new one; `onDown` is
   * told why there is none any more, and whether the client tries again; `onText` takes texts of the server.
   */
  class Link {
    constructor(peer, settings, { onUp, onDown }) {
      this._peer = peer;
      this._settings = settings;
      this._onUp = onUp;
      this._onDown = onDown;
      this._channel = null;
      this._token = null;
      this._workspace = settings.workspace;
      this._closing = false;
      this._lose = () => {}; // ends what waits for the end of the connection
      this._wake = () => {};
    }

    /** Connect for the first time; from then on the client comes back by itself. Rejects when that is not possible. */
    async start() {
      const lost = await this._connect();
      this._stay(lost, Date.now());
    }

    /** Say goodbye and end, whether there is a connection or not. */
    async close() {
      if (this._closing) return;
      this._closing = true;
      const error = connectionLost("this client has disconnected");
      const channel = this._channel;
      this._detach(error);
      this._peer.end(error);
      this._lose(error);
      this._wake();
      await channel?.close();
    }

    /** One connection until everything is told; gives the promise of an object with the reason of its end. */
    async _connect() {
      const lost = new Promise((resolve) => {
        this._lose = resolve;
      });
      const { client_id, token } = this._settings;
      const credentials = { client_id, workspace: this._workspace, token, reconnection_token: this._token };
      const channel = await openChannel(this._settings, credentials, (opened) => this._attach(opened));
      if (this._closing) {
        await channel.close();
        throw connectionLost("this client has disconnected");
      }
      const wanted = this._settings.workspace;
      if (wanted && wanted !== channel.info.workspace) {
        await this.close();
        throw invalid(`Connected to the wrong workspace: ${channel.info.workspace}, expected: ${wanted}`);
      }
      await Promise.race([this._onUp(channel.info), lost]);
      return { lost };
    }

    _attach(channel) {
      this._channel = channel;
      this._token = channel.info.reconnection_token ?? null;
      this._workspace = channel.info.workspace;
      channel.onMessage = (message) => {
        if (message instanceof Uint8Array) this._peer.take(message);
        else this._takeText(message);
      };
      channel.onLost = (error) => {
        this._detach(error);
        this._lose(error);
      };
      this._peer.attach(channel);
    }

    _detach(error) {
      if (!this._channel) return;
      this._channel = null;
      this._peer.detach(error);
    }

    _takeText(document) {
      if (document.type === "reconnection_token") this._token = document.reconnection_token ?? this._token;
    }

    /** Come back whenever the connection is lost. Never rejects. */
    async _stay({ lost }, began) {
      const tidying = setInterval(() => this._peer.dropIdleParts(), IDLE_MS);
      let attempt = 0;
      let failure = await lost;
      let wasUp = true;
      while (!this._closing) {
        const isFinal = failure instanceof Refused || !this._settings.reconnect || this._token === null;
        if (wasUp || isFinal) this._onDown(failure, !isFinal);
        if (isFinal) {
          this._peer.end(failure);
          break;
        }
        // A connection that does not live is an attempt that failed: to come back at once would hurt the server.
        attempt = wasUp && Date.now() - began > STABLE_MS ? 0 : attempt + 1;
        await this._pause(attempt);
        if (this._closing) break;
        began = Date.now();
        [failure, wasUp] = await this._oneMore();
      }
      clearInterval(tidying);
    }

    /** Connect once, until that connection is lost, too: why it is, and whether there was one. */
    async _oneMore() {
      try {
        const { lost } = await this._connect();
        return [await lost, true];
      } catch (error) {
        return [error, false];
      }
    }

    /** Wait before an attempt: not at all before the first, then longer and longer, and each client differently. */
    async _pause(attempt) {
      if (attempt === 0) return;
      const seconds = Math.min(2 ** (attempt - 1), MAX_DELAY_S) * (0.5 + Math.random() / 2);
      await new Promise((resolve) => {
        const timer = setTimeout(resolve, seconds * 1000);
        this._wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
  }

  // --- what programs see --------------------------------------------------------------------------------------------

  const MANAGER = "services.default.";

  /** What is asked of every object, and is no function of the server's. */
  const NO_FUNCTIONS = new Set(["then", "catch", "finally", "toJSON", "constructor", "inspect", "nodeType"]);

  /** Read what a program gave, in either spelling. Throws for what cannot be used. */
  function parseSettings(config) {
    if (!isMap(config)) throw invalid("connectToServer takes an object with a 'server_url'");
    const given = {};
    for (const key of Object.keys(config)) given[snakeCase(key)] = config[key];
    const socket = config.WebSocket || globalThis.WebSocket;
    if (!isFunction(socket)) throw invalid("there is no WebSocket here: in Node before 22 give that of the package ws");
    if (given.transport && given.transport !== "websocket") {
      throw invalid(`this client connects by websocket, not with transport ${JSON.stringify(given.transport)}`);
    }
    return {
      WebSocket: socket,
      url: websocketUrl(given.server_url),
      client_id: given.client_id || newId(),
      workspace: given.workspace || null,
      token: given.token || null,
      name: given.name || null,
      reconnect: given.reconnect ?? true,
      method_timeout: seconds(given, "method_timeout", 30),
      ping_interval: seconds(given, "ping_interval", 20),
    };
  }

  function seconds(given, name, usual) {
    const value = given[name] ?? usual;
    if (typeof value !== "number" || !(value > 0)) throw invalid(`${name} must be a number of seconds above 0`);
    return value;
  }

  /** The id of a service that is given as text, or as what registerService or listServices say of it. */
  function serviceId(service) {
    const id = typeof service === "string" ? service : (service?.id ?? service?.service_id);
    if (typeof id !== "string") throw invalid("a service is named by its id, a text, or by an object with an 'id'");
    return id;
  }

  /**
   * A connection to a server, which comes back by itself when it is lost. Programs hold it through `presentServer`,
   * which adds every function of the server's manager. All of them reject with a HyphaError; called while there is no
   * connection they wait for the next one, as long as for an answer.
   */
  class Server {
    constructor(settings) {
      /** What the server said when it let us in, in both spellings. */
      this.config = {};
      this._handlers = new Map();
      this._subscribed = new Set(["client_disconnected"]); // by which functions that nobody can call are forgotten
      this._peer = new Peer(settings.method_timeout, (event, main) => this._takeEvent(event, main));
      this._name = settings.name;
      this._link = new Link(this._peer, settings, {
        onUp: (info) => this._came(info),
        onDown: (error, comesBack) => this._went(error, comesBack),
      });
    }

    // services

    /**
     * Offer a service: an object with an `id` and functions, or an instance of a class. `options` are laid over its
     * `config`; `overwrite` replaces a service of that id. Gives its description, with the full `id`.
     */
    async registerService(api, options = {}) {
      const { overwrite, notify, check_type, _rkwargs, ...config } = isMap(options) ? options : { overwrite: options };
      const service = new LocalService(api, config);
      const { services } = this._peer.store;
      const before = services.get(service.id);
      if (before && !overwrite) {
        const text = `Service already exists: ${service.id}; choose another id, or give overwrite: true`;
        throw new HyphaError("Error", text, "conflict");
      }
      services.set(service.id, service);
      try {
        await this._announce(service);
      } catch (error) {
        if (services.get(service.id) === service) {
          if (before) services.set(service.id, before);
          else services.delete(service.id);
        }
        throw error;
      }
      return service.info(this._peer.name, this._peer.workspace);
    }

    async _announce(service) {
      await this._peer.channel();
      await this._ask("register_service", service.info(this._peer.name, this._peer.workspace));
    }

    /** Take a service back: its id, or what registerService gave. */
    async unregisterService(service) {
      const id = serviceId(service).replace(/^.*[:/]/, "");
      if (!this._peer.store.services.delete(id)) throw notFound(`this client offers no service ${JSON.stringify(id)}`);
      await this._ask("unregister_service", `${this._peer.name}:${id}`);
    }

    /**
     * The service of an id, `[workspace/][client:]service`, whose functions can be called. `options.mode` says which of
     * several; `options.case_conversion` (camel, snake) how its functions are spelled.
     */
    async getService(service, options = {}) {
      const { case_conversion: spelling, _rkwargs, ...config } = options || {};
      const found = await this._ask("get_service", serviceId(service), config);
      if (!spelling) return found;
      const convert = { camel: camelCase, snake: snakeCase }[spelling];
      if (!convert) throw invalid("case_conversion is camel or snake");
      return withKeys(found, convert);
    }

    /** Offer `api` as the service `default` of this client, in the place of a former one. */
    async export(api) {
      const name = this._name || this._peer.name;
      return this.registerService({ name, ...contentOf(api), id: "default" }, { overwrite: true });
    }

    /** What another client has exported. */
    async getApp(clientId) {
      return this.getService(`${clientId}:default`);
    }

    /** Descriptions of what the clients of a workspace, by default ours, have exported. */
    async listApps(workspace = this._peer.workspace) {
      return this._ask("list_services", { workspace, service_id: "default" });
    }

    // events

    /** Call `handler` with each event of that type. `connected` and `disconnected` are this client's own. */
    on(type, handler) {
      if (!isFunction(handler)) throw invalid("the handler of an event must be a function");
      this._handlers.set(type, [...(this._handlers.get(type) || []), { handler, isOnce: false }]);
    }

    /** The same for the next event only. */
    once(type, handler) {
      this.on(type, handler);
      this._handlers.get(type).at(-1).isOnce = true;
    }

    /** The opposite of `on`; without a handler for all of that type. */
    off(type, handler) {
      const kept = (this._handlers.get(type) || []).filter((entry) => handler && entry.handler !== handler);
      this._handlers.set(type, kept);
    }

    /**
     * Send an event: an object with its `type`, the client `to` which it goes, or `*` for all clients of the workspace
     * that have subscribed to it, and whatever else. Without `to` it is for the handlers here.
     */
    async emit(event) {
      if (typeof event?.type !== "string") throw invalid("an event is an object with a 'type'");
      if (event.to === undefined) this._fire(event.type, event);
      else await this._peer.emit(event);
    }

    /** Hear of events that are sent to all, also after a reconnection; `on` says what happens then. */
    async subscribe(types) {
      const answer = await this._ask("subscribe", types);
      for (const type of [types].flat()) this._subscribed.add(type);
      return answer;
    }

    /** The opposite of `subscribe`. */
    async unsubscribe(types) {
      for (const type of [types].flat()) this._subscribed.delete(type);
      return this._ask("unsubscribe", types);
    }

    _takeEvent(event, main) {
      // Only the server can have stamped its own address.
      if (main.type === "force-exit" && main.from === this._peer.manager) {
        this._went(connectionLost(`the server has ended this connection: ${event.reason}`), false);
        this.disconnect();
      }
      this._fire(main.type, event);
    }

    _fire(type, event) {
      const entries = this._handlers.get(type) || [];
      this._handlers.set(type, entries.filter(({ isOnce }) => !isOnce));
      for (const { handler } of entries) {
        // The program's own fault must not end the connection.
        (async () => handler(event))().catch((error) => console.error(`hypha: the handler of ${type} failed:`, error));
      }
    }

    // lifetime

    /** Say goodbye: nothing of this client is left at the server, and it does not come back. */
    async disconnect() {
      await this._link.close();
    }

    /** Connect for the first time. */
    async _start() {
      await this._link.start();
    }

    /** There is a connection: tell the server again what this client offers and wants to hear. */
    async _came(info) {
      const { type, ...told } = info;
      this.config = inBothCases({ ...told, id: this._peer.name, server_id: info.manager_id });
      if (info.announcement) console.info(info.announcement);
      try {
        for (const service of [...this._peer.store.services.values()]) await this._announce(service);
        if (this._subscribed.size) await this._ask("subscribe", [...this._subscribed]);
      } catch (error) {
        console.warn(`hypha: not everything could be told to the server: ${error}`);
      }
      this._fire("connected", this.config);
    }

    _went(error, comesBack) {
      this._fire("disconnected", { reason: error.message, reconnecting: comesBack });
    }

    // the rest

    /** Say how values of a type of one's own travel: `{ name, type, encoder, decoder }`. */
    registerCodec(codec) {
      if (typeof codec?.name !== "string" || !(codec.encoder || codec.decoder)) {
        throw invalid("a codec needs a 'name', and an 'encoder' with its 'type', or a 'decoder'");
      }
      if (codec.encoder && !isFunction(codec.type)) throw invalid("a codec with an 'encoder' needs a 'type', a class");
      this._peer.codecs.set(codec.name, codec);
    }

    /** Call a function of the server's manager. */
    async _ask(name, ...args) {
      await this._peer.channel();
      const [positional, kwargs] = splitArguments(args);
      return this._peer.call(this._peer.manager, MANAGER + name, positional, { kwargs });
    }
  }

  /** `server` with every function of the manager, and all names in both spellings. */
  function presentServer(server) {
    return new Proxy(server, {
      get(target, name) {
        if (typeof name !== "string" || NO_FUNCTIONS.has(name) || name.startsWith("_")) return undefined;
        const own = target[camelCase(name)];
        if (isFunction(own)) return own.bind(target);
        return own !== undefined ? own : (...args) => target._ask(snakeCase(name), ...args);
      },
    });
  }

  /** Connect to the server at `config.server_url`. Rejects when it cannot be reached, or refuses this client. */
  async function connectToServer(config) {
    const server = new Server(parseSettings(config));
    await server._start();
    return presentServer(server);
  }

  /** Run `use` with the login service of a server, through a connection of its own. */
  async function withLogin(config, use) {
    const given = {};
    for (const key of Object.keys(config)) given[snakeCase(key)] = config[key];
    const patience = given.login_timeout ?? 60;
    const { server_url } = given;
    const name = "initial login client";
    const server = await connectToServer({ server_url, name, method_timeout: patience, WebSocket: config.WebSocket });
    try {
      return await use(await server.getService(given.login_service_id || "public/hypha-login"), given, patience);
    } finally {
      await server.disconnect();
    }
  }

  /** Keyword arguments of what is there. */
  function named(map) {
    const there = Object.entries(map).filter(([, value]) => value !== undefined && value !== null);
    return { ...Object.fromEntries(there), _rkwargs: true };
  }

  /**
   * Let a person log in, and give the token (7.4). `login_callback` gets `{ login_url, key, ... }` to show; without one
   * the address is printed. `workspace` and `expires_in` are asked for; with `profile` it is an object, `token` in it.
   */
  async function login(config) {
    return withLogin(config, async (service, given, patience) => {
      const { workspace, expires_in, profile, login_callback: show } = given;
      const context = await service.start(named({ workspace, expires_in }));
      if (show) await show(context);
      else console.info(`Open this address in a browser to log in: ${context.login_url}`);
      return service.check(context.key, named({ timeout: patience, profile: profile || null }));
    });
  }

  /** Let a person log out. `logout_callback` gets `{ logout_url }` to show; without one the address is printed. */
  async function logout(config) {
    return withLogin(config, async (service, { logout_callback: show }) => {
      const context = await service.logout({});
      if (show) await show(context);
      else console.info(`Open this address in a browser to log out: ${context.logout_url}`);
    });
  }

  /** Load scripts, and in pages styles, one after the other, each once. Node has `require` and `import` for that. */
  async function loadRequirements(urls) {
    for (const url of [urls].flat()) {
      if (typeof document === "object") await loadElement(url);
      else if (typeof importScripts === "function") importScripts(url);
      else throw invalid("loadRequirements is for pages and workers");
    }
  }

  function loadElement(url) {
    const isStyle = /\.css($|[?#])/.test(url);
    const [tag, attribute] = isStyle ? ["link", "href"] : ["script", "src"];
    const address = new URL(url, document.baseURI).href;
    if ([...document.querySelectorAll(tag)].some((element) => element[attribute] === address)) return null;
    return new Promise((resolve, reject) => {
      const element = document.createElement(tag);
      if (isStyle) element.rel = "stylesheet";
      element.onload = resolve;
      element.onerror = () => {
        element.remove();
        reject(invalid(`cannot load ${url}`));
      };
      element[attribute] = address;
      document.head.append(element);
    });
  }

  return Object.freeze({
    connectToServer,
    login,
    logout,
    loadRequirements,
    schemaFunction,
    HyphaError,
    msgpack: Object.freeze({ encode: (value) => pack(value), decode: unpack }),
  });
})();

// In a module the line above defines nothing that others see.
globalThis.hyphaWebsocketClient = hyphaWebsocketClient;
if (typeof module === "object" && module.exports) module.exports = { hyphaWebsocketClient, ...hyphaWebsocketClient };
