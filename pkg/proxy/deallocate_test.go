package proxy

import "testing"

func TestReadDeallocate(t *testing.T) {
	for sql, want := range map[string]struct {
		what deallocation
		name string
	}{
		"deallocate s":               {deallocates, "s"},
		"DEALLOCATE  Prepare\tS_1 ;": {deallocates, "s_1"},
		`deallocate "A ""b"" c"`:     {deallocates, `A "b" c`},
		"deallocate prepare":         {deallocates, "prepare"},
		"deallocate prepare all":     {purges, ""},
		"deallocate all;":            {purges, ""},
		"discard all":                {purges, ""},
		"discard plans":              {nothing, ""},
		"deallocate s; select 1":     {nothing, ""},
		"deallocate s t":             {nothing, ""},
		"deallocate":                 {nothing, ""},
		"deallocate 's'":             {nothing, ""},
		`deallocate "open`:           {nothing, ""},
		"deallocated s":              {nothing, ""},
		"declare c cursor":           {nothing, ""},
		"":                           {nothing, ""},
	} {
		if what, name := readDeallocate(sql); what != want.what || name != want.name {
			t.Errorf("%q: %d %q, want %d %q", sql, what, name, want.what, want.name)
		}
	}
}

func FuzzReadDeallocate(f *testing.F) {
	f.Add("deallocate prepare \"a \"\" b\";")
	f.Add("discard all")
	f.Fuzz(func(t *testing.T, sql string) {
		what, name := readDeallocate(sql)
		if (what == deallocates) != (name != "") && sql != `deallocate ""` && what != deallocates {
			t.Errorf("%q: %d %q", sql, what, name)
		}
	})
}
