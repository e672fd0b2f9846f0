package eventloop

import (
	"bytes"
	"testing"
)

func TestLentBuffersArePowersOfTwo(t *testing.T) {
	for _, c := range []struct{ ask, size int }{
		{0, 1 << 10}, {1, 1 << 10}, {1023, 1 << 10}, {1024, 1 << 10}, {1025, 2 << 10}, {2047, 2 << 10}, {2048, 2 << 10}, {2049, 4 << 10},
		{4096, 4 << 10}, {4097, 8 << 10}, {8193, 16 << 10}, {16385, 32 << 10}, {32768, 32 << 10}, {32769, 64 << 10},
		{ScratchSize - 1, ScratchSize}, {ScratchSize, ScratchSize},
		// Made to measure.
		{ScratchSize + 1, ScratchSize + 1}, {100_000, 100_000}, {1 << 20, 1 << 20},
	} {
		var b Buffers
		for range 2 { // new, and from the free list
			buf := b.Lend(c.ask)
			if len(buf) != 0 || cap(buf) != c.size {
				t.Errorf("asked for %d: length %d, capacity %d, want 0 and %d", c.ask, len(buf), cap(buf), c.size)
			}
			if n, bytes := b.Lent(); n != 1 || bytes != c.size {
				t.Errorf("asked for %d: %d buffers of %d bytes are out", c.ask, n, bytes)
			}
			b.Return(append(buf, make([]byte, c.ask)...))
			if n, bytes := b.Lent(); n != 0 || bytes != 0 {
				t.Errorf("asked for %d: %d buffers of %d bytes are out after all", c.ask, n, bytes)
			}
		}
	}
}

func TestReturnedBuffersAreLentAgain(t *testing.T) {
	var b Buffers
	first := b.Lend(1000)
	b.Return(first[:0])
	if again := b.Lend(10); &again[:1][0] != &first[:1][0] {
		t.Error("another buffer of the same size was made")
	}
	if larger := b.Lend(1025); cap(larger) != 2048 {
		t.Errorf("capacity %d", cap(larger))
	}
	b.Return(nil)
	if n, bytes := b.Lent(); n != 2 || bytes != 3072 {
		t.Errorf("%d buffers of %d bytes are out", n, bytes)
	}
	if n := testing.AllocsPerRun(100, func() {
		x, y := b.Lend(5000), b.Lend(5000)
		b.Return(x)
		b.Return(y)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// A burst of buffers goes back to the garbage collector, but for a bounded rest.
//
// M17
func TestTheFreeListIsBounded(t *testing.T) {
	var b Buffers
	for _, size := range []int{1 << 10, 8 << 10, ScratchSize, 2 * ScratchSize} {
		var out [][]byte
		for range 3 * maxFreeBytes / size {
			out = append(out, b.Lend(size))
		}
		for _, buf := range out {
			b.Return(buf)
		}
		free := kept(t, &b)
		if size == 1<<10 && free != maxFreeBytes {
			t.Errorf("only %d bytes are kept", free)
		}
	}
	if n, bytes := b.Lent(); n != 0 || bytes != 0 {
		t.Errorf("%d buffers of %d bytes are out after all", n, bytes)
	}
	for range maxFreeBytes >> 10 {
		b.Lend(1 << 10)
		kept(t, &b)
	}
}

// kept is how many bytes are on the free lists, which count and bound them.
func kept(t *testing.T, b *Buffers) (free int) {
	t.Helper()
	for _, list := range b.free {
		for _, buf := range list {
			free += cap(buf)
		}
	}
	if free != b.freeBytes || free > maxFreeBytes {
		t.Errorf("%d bytes are kept and %d counted, allowed are %d", free, b.freeBytes, maxFreeBytes)
	}
	return free
}

// A buffer of another size than any that is lent is counted and not kept.
func TestAForeignBufferIsNotKept(t *testing.T) {
	var b Buffers
	b.Lend(1024)
	b.Return(make([]byte, 0, 1000))
	for class, list := range b.free {
		if len(list) > 0 {
			t.Errorf("class %d keeps a buffer of capacity %d", class, cap(list[0]))
		}
	}
}

func TestUseAfterReturnShows(t *testing.T) {
	var b Buffers
	buf := append(b.Lend(100), "the bytes of one client"...)
	b.Return(buf)
	if got := bytes.Contains(buf, []byte("client")); got == scribbles {
		t.Errorf("the bytes are still there: %v; test builds overwrite them: %v", got, scribbles)
	}
	if scribbles && !bytes.Equal(buf[:cap(buf)], bytes.Repeat([]byte{0xCC}, cap(buf))) {
		t.Error("not all of the buffer was overwritten")
	}
}
