package main

import (
	"crypto/subtle"
	"errors"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"sync"

	"github.com/gorilla/websocket"
	"github.com/hashicorp/yamux"
)

// device is the id of the device that tunnels belong to; a load of idle tunnels shares it.
const device = "device-1"

// idleStreams is how many streams are kept for the next requests.
const idleStreams = 512

type server struct {
	token  string
	logins *logins

	mutex  sync.RWMutex
	newest *yamux.Session
}

func serve(tunnel, httpAddr, tcpAddr, cookieFile, token string) error {
	logins := newLogins()
	cookie := logins.add("alice", "tenant-1")
	logins.own(device, "tenant-1")
	if err := os.WriteFile(cookieFile, []byte("Cookie: "+cookie+"\n"), 0o600); err != nil {
		return err
	}
	s := &server{token: token, logins: logins}
	tcp, err := net.Listen("tcp", tcpAddr)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle("/devices/{device}/http/", s.forwarder())
	ends := make(chan error, 3)
	go func() { ends <- http.ListenAndServe(tunnel, http.HandlerFunc(s.accept)) }()
	go func() { ends <- http.ListenAndServe(httpAddr, mux) }()
	go func() { ends <- s.spliceAll(tcp) }()
	return <-ends
}

// accept takes a device's tunnel.
func (s *server) accept(w http.ResponseWriter, r *http.Request) {
	token, found := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !found || subtle.ConstantTimeCompare([]byte(token), []byte(s.token)) != 1 {
		http.Error(w, "unauthorized", http.StatusUnauthorized)
		return
	}
	var upgrader websocket.Upgrader
	conn, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	session, err := yamux.Client(&socket{Conn: conn}, sessionConfig())
	if err != nil {
		conn.Close()
		return
	}
	s.mutex.Lock()
	s.newest = session
	s.mutex.Unlock()
}

func (s *server) open() (net.Conn, error) {
	s.mutex.RLock()
	session := s.newest
	s.mutex.RUnlock()
	if session == nil {
		return nil, errors.New("the device is offline")
	}
	return session.Open()
}

// forwarder answers requests of signed-in people with what the device says.
func (s *server) forwarder() http.Handler {
	transport := &http.Transport{
		Dial:                func(string, string) (net.Conn, error) { return s.open() },
		MaxIdleConns:        idleStreams,
		MaxIdleConnsPerHost: idleStreams,
		DisableCompression:  true,
	}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: "device"})
			_, path, _ := strings.Cut(r.In.URL.Path, "/http/")
			r.Out.URL.Path = "/" + path
			r.Out.URL.RawPath = ""
			r.Out.Header.Del("Cookie")
			r.SetXForwarded()
		},
		Transport:  transport,
		BufferPool: &buffers{},
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		cookie, err := r.Cookie(cookieName)
		if err != nil || !s.logins.mayUse(cookie.Value, r.PathValue("device")) {
			http.Error(w, "unauthorized", http.StatusUnauthorized)
			return
		}
		proxy.ServeHTTP(w, r)
	})
}

func (s *server) spliceAll(listener net.Listener) error {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		go func() {
			stream, err := s.open()
			if err != nil {
				conn.Close()
				return
			}
			splice(conn, stream)
		}()
	}
}

// buffers keeps the copy buffers of bodies.
type buffers struct{ pool sync.Pool }

func (b *buffers) Get() []byte {
	if buffer, ok := b.pool.Get().(*[]byte); ok {
		return *buffer
	}
	return make([]byte, 64*1024)
}

func (b *buffers) Put(buffer []byte) { b.pool.Put(&buffer) }
