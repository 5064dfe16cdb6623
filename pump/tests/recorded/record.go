// Records what a Go gRPC client sends to a pump, call by call: the bytes of `tidb.hex`, `drainer.hex` and
// `drainer-gzip.hex` beside this file. It dials as TiDB's pump client and the original drainer do, with the grpc-go
// version of their releases 7.1, against a server that answers each WriteBinlog with an empty message and each
// PullBinlogs with one message. Run: go run . (writes into the working directory).
//
// A line is one write of the client's connection, in hex; lines between two comments belong to one call.
package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/gzip"
)

const (
	clusterID = 7000001
	physical  = 1700000000000 // milliseconds
)

func ts(ms, logical uint64) uint64 { return (physical+ms)<<18 | logical }

// raw hands messages through as bytes.
type raw struct{}

func (raw) Marshal(v interface{}) ([]byte, error)      { return *v.(*[]byte), nil }
func (raw) Unmarshal(data []byte, v interface{}) error { *v.(*[]byte) = append([]byte(nil), data...); return nil }
func (raw) Name() string                               { return "proto" }

func varint(field int, v uint64) []byte {
	out := []byte{byte(field << 3)}
	for v >= 0x80 {
		out = append(out, byte(v)|0x80)
		v >>= 7
	}
	return append(out, byte(v))
}

func chunk(field int, data []byte) []byte {
	head := varint(field, uint64(len(data)))
	head[0] |= 2
	return append(head, data...)
}

// binlog is encoded as TiDB's generated code does it: fields 1, 2, 3, 7 and 8 always.
func binlog(tp, start, commit uint64, key, value string) []byte {
	out := append(varint(1, tp), varint(2, start)...)
	out = append(out, varint(3, commit)...)
	if key != "" {
		out = append(out, chunk(4, []byte(key))...)
	}
	if value != "" {
		out = append(out, chunk(5, []byte(value))...)
	}
	out = append(out, varint(7, 0)...)
	return append(out, varint(8, 0)...)
}

func write(payload []byte) []byte {
	request := varint(1, clusterID)
	if len(payload) > 0 {
		request = append(request, chunk(2, payload)...)
	}
	return request
}

type recorder struct {
	net.Conn
	log *tape
}

type tape struct {
	sync.Mutex
	out bytes.Buffer
	off bool
}

func (t *tape) note(name string) {
	t.Lock()
	fmt.Fprintf(&t.out, "# %s\n", name)
	t.Unlock()
}

func (r recorder) Write(data []byte) (int, error) {
	r.log.Lock()
	if !r.log.off {
		fmt.Fprintf(&r.log.out, "%x\n", data)
	}
	r.log.Unlock()
	return r.Conn.Write(data)
}

func serve() string {
	encoding.RegisterCodec(raw{})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	handler := func(_ interface{}, stream grpc.ServerStream) error {
		var request []byte
		if err := stream.RecvMsg(&request); err != nil {
			return err
		}
		method, _ := grpc.MethodFromServerStream(stream)
		answer := []byte{}
		if method == "/binlog.Pump/PullBinlogs" {
			answer = chunk(1, chunk(2, binlog(2, ts(0, 1), ts(0, 1), "", "")))
		}
		if err := stream.SendMsg(&answer); err != nil {
			return err
		}
		if method == "/binlog.Pump/PullBinlogs" {
			<-stream.Context().Done()
		}
		return nil
	}
	server := grpc.NewServer(grpc.UnknownServiceHandler(handler))
	go server.Serve(listener)
	return listener.Addr().String()
}

func dial(addr string, log *tape, options ...grpc.DialOption) *grpc.ClientConn {
	dialer := func(ctx context.Context, addr string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		return recorder{conn, log}, err
	}
	options = append(options, grpc.WithContextDialer(dialer), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithAuthority("pump-1:8250"))
	conn, err := grpc.Dial(addr, options...)
	check(err)
	return conn
}

func save(name string, log *tape) {
	time.Sleep(200 * time.Millisecond)
	log.Lock()
	log.off = true
	check(os.WriteFile(name, log.out.Bytes(), 0o644))
	log.Unlock()
}

func check(err error) {
	if err != nil && err != io.EOF {
		panic(err)
	}
}

func tidb(addr string) {
	log := &tape{}
	conn := dial(addr, log)
	defer conn.Close()
	first, second := ts(1000, 1), ts(1000, 2)
	for _, call := range []struct {
		name    string
		payload []byte
	}{
		{"probe", nil},
		{"prewrite", binlog(0, first, 0, "t\x80\x00\x00\x00\x00\x00\x00\x2d_r\x80\x00\x00\x00\x00\x00\x00\x01", "\x08\x65\x12\x07\x08\x2d\x12\x03row")},
		{"prewrite to be rolled back", binlog(0, second, 0, "key 2", "\x08\x65")},
		{"commit", binlog(1, first, ts(2000, 3), "t\x80\x00\x00\x00\x00\x00\x00\x2d_r\x80\x00\x00\x00\x00\x00\x00\x01", "")},
		{"rollback", binlog(2, second, 0, "key 2", "")},
	} {
		log.note(call.name)
		ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
		request, response := write(call.payload), []byte(nil)
		check(conn.Invoke(ctx, "/binlog.Pump/WriteBinlog", &request, &response))
		cancel()
	}
	save("tidb.hex", log)
}

func drainer(addr, name string, options ...grpc.CallOption) {
	log := &tape{}
	options = append(options, grpc.MaxCallRecvMsgSize(1<<31-1))
	conn := dial(addr, log, grpc.WithDefaultCallOptions(options...))
	defer conn.Close()
	log.note("pull")
	stream, err := conn.NewStream(context.Background(), &grpc.StreamDesc{ServerStreams: true}, "/binlog.Pump/PullBinlogs")
	check(err)
	request := append(varint(1, clusterID), chunk(2, varint(2, ts(500, 0)))...)
	check(stream.SendMsg(&request))
	check(stream.CloseSend())
	var response []byte
	check(stream.RecvMsg(&response))
	save(name, log)
}

func main() {
	addr := serve()
	tidb(addr)
	drainer(addr, "drainer.hex")
	drainer(addr, "drainer-gzip.hex", grpc.UseCompressor("gzip"))
}
